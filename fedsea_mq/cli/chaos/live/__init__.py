"""Faults in real processes: killed, frozen, drained, cut off, while many clients generate."""
