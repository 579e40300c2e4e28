"""Throwing hostile frames at a party: many seeds, mutations of frames that it takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.errors import RemoteError
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Nothing
from tests.property.mutations import mutated

SEEDS = 25
FRAMES_A_SEED = 2000


@dataclass(frozen=True)
class Corpus:
    """Frames that a target takes, whose mutations go deepest, and frames of every kind."""

    working: list[Parts]
    every: list[Parts]

    def frames(self, rng: random.Random, count: int) -> Iterator[Parts]:
        """Mutations of valid frames; now and then one untouched, in the wrong place or time."""
        for _ in range(count):
            parts = rng.choice(self.working if rng.random() < 0.85 else self.every)
            yield parts if rng.random() < 0.1 else mutated(rng, parts, self.every)


class Seen:
    """How many frames a target was thrown, over all seeds; and how many it took for good."""

    def __init__(self) -> None:
        self.frames = 0
        self.accepted = 0


def over_seeds(corpus: Corpus, target: Callable[[int], Callable[[Parts], bool]]) -> Seen:
    """Throw frames at a fresh target for each of the seeds that hypothesis draws.

    A target checks what comes out, and says whether it took the frame.
    """
    seen = Seen()

    @settings(max_examples=SEEDS, deadline=None, database=None)
    @given(st.integers(0, 2**63))
    def each(seed: int) -> None:
        takes = target(seed)
        for parts in corpus.frames(random.Random(seed), FRAMES_A_SEED):
            seen.accepted += takes(parts)
            seen.frames += 1

    each()
    # Fewer would be a test that went quiet, and none taken a test that never gets past the door.
    assert seen.frames >= SEEDS * FRAMES_A_SEED
    assert seen.accepted > seen.frames // 100
    return seen


def is_refusal(parts: Parts) -> bool:
    """Whether a frame of ours refuses something; that it can be read at all is asserted."""
    frame = Frame.read(parts)
    # The broker tells a node to free a session as a client would.
    free = Frame.build(Kind.CLOSE, Nothing(), session=frame.envelope.session)
    if parts == free.parts():
        return False
    refusal = frame.refusal()
    assert refusal is None or isinstance(refusal, RemoteError)
    return refusal is not None
