"""Shards of a task in token ids."""

from __future__ import annotations

from collections import Counter

import pytest

from fedsea_mq.errors import ConfigError, TaskDataError
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.run_settings import TrainingSection
from fedsea_mq.tasks.encoding import Encoded, Encoder
from fedsea_mq.tasks.shards import held_out_count
from nodes.trainer.examples import Examples, held_out_examples, load_examples


def training(**fields: object) -> TrainingSection:
    given = {"task": "embedded/understanding", "examples": 6, "clients": 3, **fields}
    return TrainingSection.model_validate(given)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open("embedded")


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_shards_are_the_whole_and_nobody_trains_on_what_is_held_out(
    checkpoint: Checkpoint, alpha: float | None
) -> None:
    whole = load_examples(training(), checkpoint)
    shards = [
        load_examples(training(shard=shard, alpha=alpha, validation=2), checkpoint)
        for shard in range(3)
    ]
    assert {shard.validation for shard in map(_frozen, shards)} == {tuple(shards[0].validation)}
    assert len(shards[0].validation) == 2
    trained = Counter(one for shard in shards for one in shard.train)
    assert not trained.keys() & set(shards[0].validation)
    assert trained <= Counter(whole.train)
    assert all(shard.train for shard in shards)


def test_what_is_asked_is_what_no_client_trains_on(checkpoint: Checkpoint) -> None:
    settings = training(task="embedded", examples=4, validation=5)
    asked, examples = held_out_examples(settings), load_examples(settings, checkpoint)
    encoder = Encoder(checkpoint.tokenizer, 700)
    assert [encoder.training(one) for one in asked] == list(examples.validation)
    assert not set(examples.validation) & set(examples.train)
    assert held_out_examples(training()) == []


def _frozen(examples: Examples) -> Examples:
    return Examples(tuple(examples.train), tuple(examples.validation))


def test_what_cannot_be_divided_or_has_no_end_is_refused(checkpoint: Checkpoint) -> None:
    for wrong in (
        {"examples": None},
        {"shard": 3},
        {"task": "embedded/nothing"},
        {"validation": 10_000},
    ):
        with pytest.raises(ConfigError):
            load_examples(training(**wrong), checkpoint)


def test_what_the_model_cannot_take_is_left_out_and_counted() -> None:
    fits, long = Encoded((1, 2), (3,)), Encoded((1,) * 9, (2,))
    silent, alone = Encoded((1, 2), ()), Encoded((), (3,))
    given = Examples([fits, long, silent, alone, fits], [long, fits], left_out=2)
    assert given.within(9) == Examples([fits, fits], [fits], left_out=6)
    with pytest.raises(TaskDataError, match="empty: 9"):
        given.within(2)


def test_records_are_held_out_until_there_are_enough_examples() -> None:
    keys = ["a", "b", "a", "c", "b", "d"]
    kept, out = held_out_count(keys, 2, seed=1)
    assert len(out) == 2
    assert not {keys[number] for number in kept} & {keys[number] for number in out}
    for count in (6, 7):
        with pytest.raises(ConfigError):
            held_out_count(keys, count, seed=1)
