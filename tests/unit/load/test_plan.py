"""Load plans: lengths, arrivals, traces, and their division among processes."""

from __future__ import annotations

import json
import random
import statistics
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from fedsea_mq.cli.load_options import plan_from
from fedsea_mq.errors import ConfigError
from fedsea_mq.load.plan import LINKS, Arrivals, Lengths, Link, LoadPlan, read_trace


def plan(**changed: Any) -> LoadPlan:
    fields: dict[str, Any] = {
        "sessions": (1,) * 8,
        "prompt": Lengths.parse("16-32"),
        "new": Lengths.parse("8"),
        "duration_s": 10.0,
    }
    return LoadPlan(**(fields | changed))


@pytest.mark.parametrize(
    ("text", "low", "high"), [("64", 64, 64), ("32-128", 32, 128), ("100~0.5", 1, 65_536)]
)
def test_lengths_stay_in_their_range(text: str, low: int, high: int) -> None:
    rng = random.Random(0)
    drawn = [Lengths.parse(text).draw(rng) for _ in range(2000)]
    assert low <= min(drawn) <= max(drawn) <= high


def test_a_log_normal_has_the_median_that_it_names() -> None:
    rng = random.Random(0)
    drawn = [Lengths.parse("100~0.5").draw(rng) for _ in range(4000)]
    assert 95 <= statistics.median(drawn) <= 105
    assert max(drawn) > 250


@pytest.mark.parametrize("text", ["", "0", "5-2", "-3", "1e9", "64-", "a", "99999999"])
def test_lengths_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="lengths"):
        Lengths.parse(text)


def test_poisson_arrivals_have_the_rate_that_was_asked_for() -> None:
    made = plan(arrivals=Arrivals.POISSON, rate=20.0)
    times = [request.at_s for request in islice(made.requests(random.Random(1)), 4000)]
    assert times == sorted(times)
    assert 19 <= len(times) / times[-1] <= 21
    gaps = [after - before for before, after in pairwise(times)]
    assert 0.9 <= statistics.stdev(gaps) / statistics.mean(gaps) <= 1.1


def test_bursts_come_at_once_at_the_same_rate() -> None:
    made = plan(arrivals=Arrivals.BURSTS, rate=20.0, burst=5)
    times = [request.at_s for request in islice(made.requests(random.Random(1)), 4000)]
    assert len(set(times)) == len(times) // 5
    assert 18 <= len(times) / times[-1] <= 22


def test_a_plan_divided_among_processes_is_the_same_load() -> None:
    whole = plan(sessions=(32, 1, 1, 1, 1), rate=9.0)
    parts = whole.split(3)
    assert sorted(n for part in parts for n in part.sessions) == [1, 1, 1, 1, 32]
    assert sum(part.rate for part in parts) == pytest.approx(9.0)
    assert len({part.seed for part in parts}) == 3
    assert len(plan(sessions=(1,)).split(4)) == 1


def test_a_plan_crosses_to_its_process_unchanged() -> None:
    made = plan(link=LINKS["mobile"], trace=())
    assert json.loads(json.dumps(plan().model_dump(mode="json"), allow_nan=False))
    assert LoadPlan.model_validate_json(made.model_dump_json()) == made
    assert LoadPlan.model_validate_json(json.dumps(plan().model_dump(mode="json"))) == plan()


def test_a_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    lines = [{"at_s": at, "prompt_tokens": 5, "new_tokens": 3} for at in (2.0, 0.5)]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    assert [request.at_s for request in read_trace(file)] == [0.5, 2.0]
    file.write_text('{"at_s": 1}\n')
    with pytest.raises(ConfigError, match="line 1"):
        read_trace(file)
    file.write_text("")
    with pytest.raises(ConfigError, match="no request in it"):
        read_trace(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none")


FIELDS: dict[str, Any] = {
    "sessions": (1,),
    "kind": "thin",
    "prompt": "8",
    "new": "8",
    "duration_s": 10.0,
    "warmup_s": 1.0,
    "stops": 0.0,
    "vanishes": 0.0,
}


@pytest.mark.parametrize(
    ("arrivals", "link", "changed", "said"),
    [
        ("often", "lan", {}, "--arrivals"),
        ("poisson:fast", "lan", {}, "--arrivals"),
        ("poisson:-1", "lan", {}, "--arrivals.*RATE"),
        ("poisson:0", "lan", {}, "--arrivals.*RATE"),
        ("poisson:inf", "lan", {}, "--arrivals.*RATE"),
        ("poisson:nan", "lan", {}, "--arrivals.*RATE"),
        ("bursts:5,0", "lan", {}, "--arrivals.*SIZE"),
        ("closed:5", "lan", {}, "--arrivals"),
        ("trace:", "lan", {}, "--arrivals.*trace:FILE"),
        ("trace:/no/such/file", "lan", {}, "--arrivals: /no/such/file"),
        ("closed", "1,2,0,0", {}, "--link.*MBPS above 0"),
        ("closed", "nan,2,1,0", {}, "--link"),
        ("closed", "lan", {"stops": 0.6, "vanishes": 0.6}, "--stops and --vanishes"),
        ("bursts:5", "lan", {}, "--arrivals"),
        ("closed", "moon", {}, "--link"),
        ("closed", "1,2,3", {}, "--link"),
        ("closed", "wan", {"kind": "full", "vanishes": 0.1}, "--vanishes"),
        ("closed", "lan", {"warmup_s": 10.0}, "--warmup"),
        ("closed", "lan", {"prompt": "many"}, "--prompt: lengths"),
        ("closed", "lan", {"prompt": "128-32"}, "--prompt.*32-128"),
        ("closed", "lan", {"new": "100~99"}, "--new.*at most 3"),
    ],
)
def test_options_that_make_no_sense_are_named(
    arrivals: str, link: str, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_from(arrivals, link, **(FIELDS | changed))


def test_a_link_can_be_given_in_figures() -> None:
    made = plan_from("closed", "10,2,50,0.01", **FIELDS)
    assert made.link == Link(delay_ms=10, jitter_ms=2, mbps=50, loss=0.01)


def test_a_link_may_have_no_limit() -> None:
    assert plan_from("closed", "10,2,inf,0", **FIELDS).link.mbps is None


@pytest.mark.parametrize(("duration", "warmup"), [(2.0, 0.5), (20.0, 3.0)])
def test_a_short_test_has_a_short_warm_up(duration: float, warmup: float) -> None:
    made = plan_from("closed", "lan", **(FIELDS | {"duration_s": duration, "warmup_s": None}))
    assert (made.measured.from_s, made.measured.until_s) == (warmup, duration)


def test_a_trace_that_begins_after_the_test_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"at_s": 11, "prompt_tokens": 5, "new_tokens": 3}')
    with pytest.raises(ConfigError, match="first request is at 11 s"):
        plan_from(f"trace:{file}", "lan", **FIELDS)
