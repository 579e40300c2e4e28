"""Drafts: what is guessed, and how much guessing is worth."""

from __future__ import annotations

import random

import pytest

from fedsea_mq.serving.drafting import Drafting, DraftLength, PromptLookup


@pytest.mark.parametrize(
    ("tokens", "most", "drafted"),
    [
        ([], 4, []),
        ([1], 4, []),
        ([1, 2, 3], 4, []),
        ([1, 2, 3, 1], 2, [2, 3]),
        ([1, 2, 3, 1], 9, [2, 3, 1]),
        ([1, 2, 3, 1], 0, []),
        ([7, 1, 2, 8, 1, 3, 9, 1], 1, [3]),  # of two, the later one
        ([7, 1, 2, 8, 1, 3, 9, 7, 1], 1, [2]),  # a longer run counts more than a later one
        ([5, 5, 5, 5], 3, [5]),
    ],
)
async def test_what_followed_before_is_guessed_to_follow_again(
    tokens: list[int], most: int, drafted: list[int]
) -> None:
    assert await PromptLookup().draft(tokens, most) == drafted


async def test_tokens_that_grow_are_looked_up_as_if_they_were_new() -> None:
    rng = random.Random(3)
    lookup, tokens = PromptLookup(), []
    for _ in range(300):
        tokens += [rng.randrange(6) for _ in range(rng.randint(1, 4))]
        assert await lookup.draft(tokens, 5) == await PromptLookup().draft(tokens, 5)


def settled(holds: float, fixed_s: float, each_s: float) -> DraftLength:
    """After many steps of such costs, in which guesses hold as often as that."""
    rng = random.Random(1)
    length = DraftLength(12)
    for _ in range(2000):
        guesses = rng.randint(0, 12)
        held = next((n for n in range(guesses) if rng.random() >= holds), guesses)
        length.note(guesses, held, fixed_s + (guesses + 1) * each_s)
    return length


def test_far_away_and_often_right_then_drafts_are_long() -> None:
    assert settled(holds=0.95, fixed_s=0.05, each_s=0.0005).best() >= 10


def test_seldom_right_then_drafts_are_short() -> None:
    assert settled(holds=0.2, fixed_s=0.05, each_s=0.002).best() <= 3


def test_nearby_where_positions_cost_then_nothing_is_guessed() -> None:
    assert settled(holds=0.3, fixed_s=0.001, each_s=0.005).best() == 0


async def test_who_gave_up_guessing_tries_again_after_a_while() -> None:
    length = settled(holds=0.05, fixed_s=0.02, each_s=0.005)
    assert length.best() == 0
    drafting = Drafting(length, PromptLookup())
    tries = 0
    while not await drafting.draft([1, 2, 1], 4):
        tries += 1
        assert tries < 1000
    assert tries > 3


async def test_before_anything_is_known_drafts_are_as_long_as_they_may_be() -> None:
    assert DraftLength(7).best() == 7
    drafting = Drafting(DraftLength(7), PromptLookup())
    assert await drafting.draft([1, 2, 3, 4, 1], 2) == [2, 3]
