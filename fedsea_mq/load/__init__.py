"""Simulated load: what clients do, over which links, and what it measured."""
