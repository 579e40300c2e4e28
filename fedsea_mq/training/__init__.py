"""Split LoRA training: the three parts' steps, adapters and exact resumption; federated rounds."""
