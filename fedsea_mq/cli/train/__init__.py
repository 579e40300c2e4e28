"""`fedsea train`: a run's processes, what they report, and what is written of it."""
