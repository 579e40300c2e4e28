"""Sums of what generations cost, and the rate of tokens over the last seconds."""

from __future__ import annotations

from fedsea_mq.transport.requests import Traffic
from nodes.client import GenerationStats
from nodes.gateway.meter import WINDOW_S, Meter


def test_traffic_is_that_of_running_and_of_ended_generations() -> None:
    meter, first, second = Meter(), GenerationStats(), GenerationStats()
    with meter.counting(first):
        with meter.counting(second):
            first.traffic, second.traffic = Traffic(10, 1), Traffic(20, 2)
            assert meter.traffic.bytes_up == 30
        second.traffic = Traffic(99, 99)  # of no account any more
        first.traffic = Traffic(15, 1)
    assert (meter.traffic.bytes_up, meter.traffic.bytes_down) == (35, 3)


def test_the_rate_is_of_whole_seconds_and_forgets() -> None:
    now = [100.0]
    meter = Meter(lambda: now[0])
    for _ in range(5 * WINDOW_S):
        meter.token()
    assert meter.tokens_per_s == 0  # this second is not over
    now[0] += 1
    assert meter.tokens_per_s == 5
    now[0] += WINDOW_S
    assert meter.tokens_per_s == 0
    assert meter.tokens == 5 * WINDOW_S
