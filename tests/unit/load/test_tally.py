"""What a load test counts, how it merges, and what its report says."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from typing import Any

import pytest

from fedsea_mq.cli.output import json_text
from fedsea_mq.load.histogram import Histogram
from fedsea_mq.load.page import markdown
from fedsea_mq.load.plan import LINKS, Lengths, LoadPlan, Slo, Window
from fedsea_mq.load.plots import throughput
from fedsea_mq.load.report import build_report, failure
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


WINDOW = Window(10.0, 20.0)


def request(
    tally: Tally,
    client: str,
    begun: float,
    tokens: list[float],
    outcome: Outcome | str,
    ended: float | None = None,
) -> None:
    watch = RequestWatch(client, begun, WINDOW)
    for at in tokens:
        watch.token(at)
    now = ended if ended is not None else tokens[-1] if tokens else begun
    watch.end(outcome, now, tally, Slo(ttft_ms=500, tpot_ms=100))


def full_tally() -> Tally:
    tally = Tally()
    request(tally, "a", 11.0, [11.2, 11.25, 11.3, 11.35], Outcome.DONE)
    request(tally, "a", 12.0, [12.9, 12.95], Outcome.DONE)  # a late first token
    request(tally, "b", 13.0, [13.2, 13.4, 13.6], Outcome.STOPPED)
    request(tally, "b", 8.0, [9.0, 9.1], Outcome.DONE)  # of the warm-up alone
    request(tally, "b", 9.0, [9.5, 10.5], Outcome.DONE)  # begun in the warm-up
    request(tally, "b", 14.0, [], Outcome.BUSY)
    request(tally, "b", 15.0, [], "SessionLost")
    request(tally, "b", 8.0, [], "SessionLost")
    request(tally, "b", 19.8, [19.9, 20.1], Outcome.DONE)  # ends too late
    request(tally, "b", 19.0, [21.0], Outcome.DONE)  # has waited too long by then
    return tally


def test_a_tally_counts_what_happened_in_the_window() -> None:
    tally = full_tally()
    assert tally.outcomes == {"done": 3, "stopped": 1, "busy": 1}
    assert tally.errors == {"SessionLost": 1}
    assert tally.errors_outside == {"SessionLost": 1}
    assert (tally.unfinished, tally.overdue) == (2, 1)
    assert tally.tokens_of == {"a": 6, "b": 5}
    assert tally.tokens_at == {0: 1, 1: 4, 2: 2, 3: 3, 9: 1}
    assert (tally.good, tally.good_tokens) == (1, 4)
    assert (tally.ttft.count, tally.e2e.count, tally.tpot.count, tally.itl.count) == (4, 3, 3, 7)
    assert tally.ttft.percentile(50) == pytest.approx(0.2, rel=0.01)
    assert tally.tpot.percentile(50) == pytest.approx(0.05, rel=0.01)


def test_who_waited_from_the_warm_up_on_shows_with_the_whole_wait() -> None:
    tally = Tally()
    request(tally, "a", 4.0, [12.0, 12.05], Outcome.DONE)
    request(tally, "b", 4.0, [], Outcome.BUSY, ended=13.0)
    assert tally.ttft.percentile(50) == pytest.approx(8.0, rel=0.01)
    assert tally.outcomes == {"done": 1, "busy": 1}


def test_time_at_the_gate_is_no_time_between_tokens() -> None:
    tally, watch = Tally(), RequestWatch("a", 1.0, Window(0.0, math.inf))
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
    assert both.tokens == 22
    assert both.decode_from == one.decode_from
    assert both.ttft.count == 8


def report_of(tally: Tally, plan: LoadPlan = PLAN) -> dict[str, Any]:
    return build_report(plan, tally, Samples({}), {"cut": "1+1"})


def test_the_report_says_what_was_counted() -> None:
    report = report_of(full_tally())
    assert report["measured_s"] == 10
    assert report["requests"]["done"] == 3
    assert report["requests"]["unfinished"] == 2
    assert report["requests"]["errors"] == {"SessionLost": 1}
    assert report["tokens_per_s"] == pytest.approx(1.1)
    assert report["goodput"]["requests_per_s"] == pytest.approx(0.1)
    assert report["jain"] == pytest.approx(jain([6, 5]))
    assert json.loads(json_text(report)) == report
    page = markdown(report)
    assert "1 SessionLost" in page
    assert re.search(r"\| TTFT \| (199|200|201)\.\d \|", page)


def test_the_good_are_a_share_of_all_that_were_asked_for() -> None:
    tally = full_tally()
    # done 3, busy 1, error 1, late at the end 1; who stopped is nobody's fault
    assert report_of(tally)["goodput"]["share"] == pytest.approx(1 / 6)
    tally.unsent = 4
    assert report_of(tally)["goodput"]["share"] == pytest.approx(1 / 10)


def test_clients_that_got_nothing_count_as_nothing_for_fairness() -> None:
    four = PLAN.model_copy(update={"sessions": (1,) * 4})
    tally = Tally(tokens_of=Counter(a=12))
    assert report_of(tally, four)["jain"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("duration", [1.2, 1.5, 2.0])
def test_a_part_of_a_second_does_not_change_the_rate(duration: float) -> None:
    plan = PLAN.model_copy(update={"duration_s": duration, "warmup_s": 0.0})
    tally, watch = Tally(), RequestWatch("a", 0.0, plan.measured)
    for n in range(300):
        watch.token(n / 100 + 0.005)
    watch.end(Outcome.DONE, 3.0, tally, Slo())
    assert report_of(tally, plan)["tokens_per_s"] == pytest.approx(100)
    _, rates = throughput(tally, plan.measured)
    assert rates == pytest.approx([100] * math.ceil(duration))


def test_where_there_is_no_sample_nothing_is_claimed() -> None:
    report = report_of(Tally())
    none = ("mean_batch", "occupancy", "trunk_busy", "kv_used", "jain", "direct_share")
    assert [report[name] for name in none] == [None] * len(none)
    assert report["goodput"]["share"] is None
    assert not report["generator"]["is_bottleneck"]
    page = markdown(report)
    assert "busy -, mean batch -" in page
    assert "(Jain, tokens by client): -" in page


def test_the_report_names_what_was_asked_for() -> None:
    changed: dict[str, Any] = {"arrivals": "bursts", "rate": 7.5, "burst": 3, "link": LINKS["wan"]}
    changed |= {"stops": 0.1, "vanishes": 0.2, "seed": 41, "prompt": Lengths.parse("100~0.5")}
    page = markdown(report_of(full_tally(), LoadPlan(**(dict(PLAN) | changed))))
    for said in (
        *("7.5 requests/s in bursts of 3", "prompt 100~0.5", "new 4 tokens", "25 ms each way"),
        *("10% stop", "20% vanish", "seed 41", "Of 12 s, 10 s are measured", "cut: 1+1"),
    ):
        assert said in page


def test_a_test_in_which_nothing_succeeded_says_what_it_met() -> None:
    assert failure(report_of(full_tally())) is None
    tally = Tally(said={"LimitExceeded": "this node holds 1 to 64"})
    request(tally, "a", 12.0, [], "LimitExceeded")
    request(tally, "a", 12.0, [], Outcome.BUSY)
    why = failure(report_of(tally)) or ""
    assert "1 LimitExceeded: this node holds 1 to 64" in why
    assert "1 Busy" in why


def test_a_generator_says_why_it_is_the_bottleneck() -> None:
    tally = full_tally()
    assert not report_of(tally)["generator"]["is_bottleneck"]
    tally.busiest_share = 0.97
    assert "used 0.97 cores" in markdown(report_of(tally))
    assert "late" not in markdown(report_of(tally)).split("bottleneck")[1]


def test_an_event_loop_that_stood_still_once_is_a_bottleneck() -> None:
    tally = full_tally()
    for _ in range(1000):
        tally.lag.note(0.001)
    tally.lag.note(2.0)
    assert report_of(tally)["generator"]["is_bottleneck"]


def test_jain_is_one_when_all_are_equal_and_the_inverse_of_n_when_one_has_all() -> None:
    assert jain([5, 5, 5]) == pytest.approx(1.0)
    assert jain([9, 0, 0]) == pytest.approx(1 / 3)
    assert math.isnan(jain([]))
