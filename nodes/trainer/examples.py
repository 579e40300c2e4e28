"""A member's examples: its shard of a task, in token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsea_mq.errors import ConfigError, ContextOverflow, InvalidPrompt, TaskDataError
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.run_settings import TrainingSection
from fedsea_mq.tasks.embedded import WorldSource
from fedsea_mq.tasks.encoding import Encoded, Encoder
from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.shards import check_clients, dirichlet_shards, held_out_count, iid_shards
from fedsea_mq.tasks.task import Example, Split, Task, Wanted


@dataclass(frozen=True, slots=True)
class Examples:
    """What is trained on, and what only the loss is told on.

    `left_out` is how many others the model cannot take: too long, or without an answer to learn.
    """

    train: Sequence[Encoded]
    validation: Sequence[Encoded] = ()
    left_out: int = 0

    def within(self, positions: int) -> Examples:
        """Those of at most so many positions, with an answer that something predicts.

        Raises:
            TaskDataError: nothing is left to train on.
        """
        train = [one for one in self.train if _fits(one, positions)]
        validation = [one for one in self.validation if _fits(one, positions)]
        fewer = len(self.train) + len(self.validation) - len(train) - len(validation)
        left_out = self.left_out + fewer
        if not train:
            raise TaskDataError(
                f"the shard is empty: {left_out} examples, none of which the model can take"
            )
        return Examples(train, validation, left_out)


def _fits(example: Encoded, positions: int) -> bool:
    # Nothing predicts a sequence's first token.
    answers = len(example.answer) - (not example.prompt)
    return answers > 0 and len(example.ids) <= positions


def load_examples(training: TrainingSection, checkpoint: Checkpoint) -> Examples:
    """Read, divide and encode a task's examples; the same for the same configuration.

    What is held out is held out of all shards: all clients tell their loss on the same examples.

    Raises:
        ConfigError: no such task or shard, or too few examples for the clients.
        TaskDataError: as the task's source does.
        CheckpointError: the model has no tokenizer.
    """
    task = find(training.task, training.data)
    kept, held_out = _divided(task, training)
    shard = _shard(kept, training)
    encoder = Encoder.of(task, checkpoint)
    train = _encoded(encoder, shard)
    validation = _encoded(encoder, held_out)
    left_out = len(shard) + len(held_out) - len(train) - len(validation)
    return Examples(train, validation, left_out)


def check_shards(training: TrainingSection) -> None:
    """See that there are examples for each of `training.clients`, before any of them starts.

    Raises as `load_examples`, but for the tokenizer.
    """
    kept, _ = _divided(find(training.task, training.data), training)
    check_clients(len(kept), training.clients)


def held_out_examples(training: TrainingSection) -> list[Example]:
    """The `training.validation` examples that no client trains on, to be asked.

    Raises as `load_examples`.
    """
    return _divided(find(training.task, training.data), training)[1]


def _divided(task: Task, training: TrainingSection) -> tuple[list[Example], list[Example]]:
    """What is trained on and what is held out, none of one record on both sides."""
    every = _every(task, training)
    if not training.validation:
        return every, []
    records = [example.record for example in every]
    kept, held_out = held_out_count(records, training.validation, training.seed)
    return [every[number] for number in kept], [every[number] for number in held_out]


def _every(task: Task, training: TrainingSection) -> list[Example]:
    if training.examples is None and isinstance(task.source, WorldSource):
        raise ConfigError(f"training.examples: {task.name} has no end, say how many")
    wanted = Wanted(Split.TRAIN, training.examples, training.seed)
    return list(task.source.examples(wanted))


def _shard(examples: list[Example], training: TrainingSection) -> list[Example]:
    if training.shard is None:
        return examples
    if training.shard >= training.clients:
        raise ConfigError(f"training.shard {training.shard} of {training.clients} clients")
    if training.alpha is None:
        shards = iid_shards(len(examples), training.clients, training.seed)
    else:
        labels = [example.label for example in examples]
        shards = dirichlet_shards(labels, training.clients, training.alpha, training.seed)
    return [examples[number] for number in shards[training.shard]]


def _encoded(encoder: Encoder, examples: list[Example]) -> list[Encoded]:
    encoded = []
    for example in examples:
        try:
            encoded.append(encoder.training(example))
        except (InvalidPrompt, ContextOverflow):
            continue  # counted by who asked
    return encoded
