"""Clipping and noise on what leaves the client.

What they buy is for measurement to say, not for this package.
"""
