"""What a model is asked to do: tasks by name, their records, examples, metrics and shards."""
