"""How sure is a number? Intervals, bins, rank correlation, separation."""
