"""A small language model that the project trains itself, and its world."""
