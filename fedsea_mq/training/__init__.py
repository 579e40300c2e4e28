"""Split LoRA training: the three parts' steps, their optimisers, adapters and exact resumption."""
