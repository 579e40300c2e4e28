"""`--on ray`: the same processes, placed and watched by Ray."""
