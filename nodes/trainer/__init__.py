"""The training client: a member of a run, which holds the text, head, tail and their adapters."""

from fedsea_mq.imports import without_collection

with without_collection():
    from nodes.trainer.client import TrainingClient
    from nodes.trainer.examples import Examples

__all__ = ["Examples", "TrainingClient"]
