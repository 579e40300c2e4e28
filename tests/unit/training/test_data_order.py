"""What a step takes follows from seed, member and position alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedsea_mq.training.data_order import DataOrder, micro_batches

counts = st.integers(1, 40)


@given(examples=counts, before=st.integers(0, 100), sizes=st.lists(st.integers(1, 30), max_size=5))
def test_it_is_the_same_however_it_is_taken(examples: int, before: int, sizes: list[int]) -> None:
    order = DataOrder(examples, 3, "a")
    whole = order.take(before, sum(sizes))
    apart, position = [], before
    for size in sizes:
        apart += DataOrder(examples, 3, "a").take(position, size)
        position += size
    assert apart == whole


@given(examples=counts, epoch=st.integers(0, 5))
def test_an_epoch_has_every_example_once(examples: int, epoch: int) -> None:
    taken = DataOrder(examples, 0, "a").take(epoch * examples, examples)
    assert sorted(taken) == list(range(examples))


def test_epochs_members_and_seeds_differ() -> None:
    orders = [
        DataOrder(50, 0, "a").take(0, 50),
        DataOrder(50, 0, "a").take(50, 50),
        DataOrder(50, 0, "b").take(0, 50),
        DataOrder(50, 1, "a").take(0, 50),
    ]
    assert len({tuple(order) for order in orders}) == 4


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), most=counts, positions=counts)
def test_batches_of_a_step_are_all_of_it_within_bounds(
    lengths: list[int], most: int, positions: int
) -> None:
    batches = [lengths[cut] for cut in micro_batches(lengths, most, positions)]
    assert [length for batch in batches for length in batch] == lengths
    for number, batch in enumerate(batches):
        assert 1 <= len(batch) <= most
        assert sum(batch) <= positions or len(batch) == 1
        # And no batch ends before it must.
        if number + 1 < len(batches):
            following = batches[number + 1][0]
            assert len(batch) == most or sum(batch) + following > positions
