"""The `fedsea` command: the application's edge, and the only package here that imports nodes."""
