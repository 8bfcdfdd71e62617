"""Each file is a method: pure functions on one kernel or one MLP."""
