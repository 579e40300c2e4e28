"""What a load test counts, how it merges, and what its report says."""

from __future__ import annotations

import json
import math
import random
import re

import pytest

from fedsea_mq.load.histogram import Histogram
from fedsea_mq.load.plan import Lengths, LoadPlan, Slo
from fedsea_mq.load.report import build_report, markdown
from fedsea_mq.load.samples import Samples
from fedsea_mq.load.tally import Outcome, RequestWatch, Tally, jain

PLAN = LoadPlan(
    sessions=(1, 1), prompt=Lengths.parse("8"), new=Lengths.parse("4"), duration_s=12, warmup_s=2
)


def test_percentiles_are_right_to_a_hundredth() -> None:
    rng = random.Random(0)
    times = [rng.lognormvariate(-3, 1) for _ in range(20_000)]
    histogram = Histogram()
    for seconds in times:
        histogram.note(seconds)
    exact = sorted(times)
    for percent in (1, 50, 95, 99):
        true = exact[math.ceil(percent / 100 * len(exact)) - 1]
        assert histogram.percentile(percent) == pytest.approx(true, rel=0.011)
    assert math.isnan(Histogram().percentile(50))


def request(
    tally: Tally, client: str, begun: float, tokens: list[float], outcome: Outcome | str
) -> None:
    watch = RequestWatch(client, begun, measured_from=10.0)
    for at in tokens:
        watch.token(at)
    watch.end(outcome, tokens[-1] if tokens else begun, tally, Slo(ttft_ms=500, tpot_ms=100))


def full_tally() -> Tally:
    tally = Tally()
    request(tally, "a", 11.0, [11.2, 11.25, 11.3, 11.35], Outcome.DONE)
    request(tally, "a", 12.0, [12.9, 12.95], Outcome.DONE)  # a late first token
    request(tally, "b", 13.0, [13.2, 13.4, 13.6], Outcome.STOPPED)
    request(tally, "b", 9.0, [9.5, 10.5], Outcome.DONE)  # begun in the warm-up
    request(tally, "b", 14.0, [], Outcome.BUSY)
    request(tally, "b", 15.0, [], "SessionLost")
    return tally


def test_a_tally_counts_what_happened_after_the_warm_up() -> None:
    tally = full_tally()
    assert tally.outcomes == {"done": 3, "stopped": 1, "busy": 1}
    assert tally.errors == {"SessionLost": 1}
    assert tally.tokens_of == {"a": 6, "b": 4}
    assert tally.tokens_at == {0: 1, 1: 4, 2: 2, 3: 3}
    assert (tally.good, tally.good_tokens) == (1, 4)
    assert (tally.ttft.count, tally.e2e.count, tally.tpot.count, tally.itl.count) == (3, 2, 2, 6)
    assert tally.ttft.percentile(50) == pytest.approx(0.2, rel=0.01)
    assert tally.tpot.percentile(50) == pytest.approx(0.05, rel=0.01)


def test_time_at_the_gate_is_no_time_between_tokens() -> None:
    tally, watch = Tally(), RequestWatch("a", 1.0, 0.0)
    watch.token(2.0)
    watch.decodes(9.0)
    watch.token(9.1)
    watch.end(Outcome.DONE, 9.1, tally, Slo())
    assert tally.itl.percentile(100) == pytest.approx(0.1, rel=0.01)
    assert (tally.decode_from, tally.decode_until, tally.decode_tokens) == (9.0, 9.1, 1)


def test_tallies_cross_from_their_processes_and_add_up() -> None:
    one = Tally.from_json(json.loads(json.dumps(full_tally().as_json())))
    assert one == full_tally()
    both = Tally()
    both.add(one)
    both.add(full_tally())
    assert both.outcomes["done"] == 6
    assert both.tokens == 20
    assert both.decode_from == one.decode_from
    assert both.ttft.count == 6


def test_the_report_says_what_was_counted() -> None:
    report = build_report(PLAN, full_tally(), Samples({}))
    assert report["requests"]["done"] == 3
    assert report["requests"]["errors"] == {"SessionLost": 1}
    assert report["tokens_per_s"] == pytest.approx(1.0)
    assert report["goodput"]["requests_per_s"] == pytest.approx(0.1)
    assert report["goodput"]["share"] == pytest.approx(0.5)
    assert report["jain"] == pytest.approx(jain([6, 4]))
    assert json.loads(json.dumps(report)) == report
    page = markdown(report)
    assert "1 SessionLost" in page
    assert re.search(r"\| TTFT \| (199|200)\.\d \|", page)


def test_a_late_or_busy_generator_says_that_it_is_the_bottleneck() -> None:
    tally = full_tally()
    assert not build_report(PLAN, tally, Samples({}))["generator"]["is_bottleneck"]
    tally.busiest_share = 0.97
    report = build_report(PLAN, tally, Samples({}))
    assert report["generator"]["is_bottleneck"]
    assert "bottleneck" in markdown(report)


def test_jain_is_one_when_all_are_equal_and_the_inverse_of_n_when_one_has_all() -> None:
    assert jain([5, 5, 5]) == pytest.approx(1.0)
    assert jain([9, 0, 0]) == pytest.approx(1 / 3)
    assert jain([]) == 1.0
