"""One method a file: pure functions on one kernel or one MLP."""
