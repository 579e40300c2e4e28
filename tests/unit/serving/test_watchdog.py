"""When a piece of work counts as stuck."""

from __future__ import annotations

import pytest

from fedsea_mq.errors import StepStuck
from fedsea_mq.serving.watchdog import Watchdog


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_work_that_was_looked_at_for_its_whole_patience_is_stuck() -> None:
    time = Time()
    dog = Watchdog(4.0, time)
    with dog.working():
        for _ in range(4):
            time.now += 1.0
            dog.look()
        time.now += 1.0
        with pytest.raises(StepStuck):
            dog.look()
    assert dog.is_stuck


def test_a_process_that_was_frozen_itself_has_time_to_end_its_step() -> None:
    """Who stops the process, or suspends its machine, stops its thread, too."""
    time = Time()
    dog = Watchdog(4.0, time)
    with dog.working():
        time.now += 1.0
        dog.look()
        time.now += 1000.0
        dog.look()
    assert not dog.is_stuck
