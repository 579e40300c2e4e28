"""One function a command of `fedsea`; what carries it out is imported when it is called."""
