"""The methods, run on a checkpoint that lies on disk."""
