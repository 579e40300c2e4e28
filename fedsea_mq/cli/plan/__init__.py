"""`fedsea plan`: measures machines, predicts what each cut costs, and recommends one."""
