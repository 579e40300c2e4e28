"""The model cut in three: partition, checkpoints, blocks over a KV cache, sampling."""
