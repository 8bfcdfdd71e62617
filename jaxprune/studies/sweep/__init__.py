"""Many configurations of one model: their scores and choices, compared."""
