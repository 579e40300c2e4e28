"""The training client: a member of a run, which holds the text, head, tail and their adapters."""

from nodes.trainer.client import TrainingClient
from nodes.trainer.examples import Examples

__all__ = ["Examples", "TrainingClient"]
