"""Noise on what leaves the client. What it buys is for measurement to say, not for this package."""
