"""Attacks on a running system with keys, and what honest clients notice of each."""
