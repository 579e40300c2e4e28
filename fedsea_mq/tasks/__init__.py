"""What the model is asked to do: a small invented world, the paper's three tasks, their metrics."""
