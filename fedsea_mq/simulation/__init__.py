"""Processes, network and time that exist in one process: the same seed, the same events."""
