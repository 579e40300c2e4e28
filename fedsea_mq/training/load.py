"""Load parts for training: frozen weights once, adapters on top."""

from __future__ import annotations

import torch

from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.grouped_lora import GroupedLora
from fedsea_mq.model.lora import NamedBlocks, PeftAdapter
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.model.parts import BlockRun, load_client, load_trunk
from fedsea_mq.training.blocks import TrainedBlocks
from fedsea_mq.training.graphs import Graphs
from fedsea_mq.training.grouped_trunk import GroupedTrunk
from fedsea_mq.training.seeds import DropoutStream, derived_seed
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.training.sliced_blocks import SlicedBlocks
from fedsea_mq.training.split_step import HeadStep, TailStep
from fedsea_mq.training.ticketed_pass import TicketedPass
from fedsea_mq.training.trained_adapter import TrainedAdapter


def load_trained_client(
    checkpoint: Checkpoint, cut: Cut, settings: TrainingSettings
) -> tuple[HeadStep, TailStep]:
    """Head and tail. Raises what `Checkpoint.load` raises."""
    head, tail = load_client(checkpoint, cut, settings.numerics)
    first = _passes(head.run, settings, Part.HEAD)
    last = _passes(tail.run, settings, Part.TAIL)
    first_adapter = _adapter(head.run, first, settings, Part.HEAD)
    last_adapter = _adapter(tail.run, last, settings, Part.TAIL)
    return (
        HeadStep(head.embedding, first, first_adapter),
        TailStep(tail, last.blocks, last_adapter, checkpoint.hidden),
    )


def load_grouped_trunk(
    checkpoint: Checkpoint, cut: Cut, settings: TrainingSettings
) -> GroupedTrunk:
    """The trunk, with no adapter yet. Raises what `Checkpoint.load` raises."""
    return grouped_trunk(
        load_trunk(checkpoint, cut, settings.numerics), settings, checkpoint.hidden
    )


def grouped_trunk(run: BlockRun, settings: TrainingSettings, hidden: int) -> GroupedTrunk:
    """Train adapters on blocks that may be serving sessions as well, on the same thread.

    Gradients must pass: the blocks' linear layers are plain ones.
    """
    grouped = None
    if Part.TRUNK in settings.parts:
        grouped = GroupedLora(NamedBlocks.of(run), settings.lora.targets)
    return GroupedTrunk(SlicedBlocks(run, settings, grouped), grouped, settings, hidden)


def _passes(run: BlockRun, settings: TrainingSettings, part: Part) -> TicketedPass:
    seed = derived_seed(settings.seed, "dropout", str(part))
    dropout = DropoutStream(seed, torch.device(settings.device))
    run.train()
    blocks = TrainedBlocks(run, settings, dropout)
    return TicketedPass(blocks, Graphs(settings.max_positions))


def _adapter(
    run: BlockRun, passes: TicketedPass, settings: TrainingSettings, part: Part
) -> TrainedAdapter:
    blocks = NamedBlocks.of(run) if part in settings.parts else NamedBlocks({})
    seed = derived_seed(settings.seed, "adapter", str(part))
    weights = PeftAdapter(blocks, settings.lora, seed)
    return TrainedAdapter(weights, settings.optimizer, passes.graphs.outdate)
