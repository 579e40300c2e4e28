"""`fedsea chaos`: what the system promises, under faults, in simulated time and in processes."""
