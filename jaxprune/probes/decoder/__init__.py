"""The probes, run on this project's decoder."""
