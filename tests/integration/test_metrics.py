"""Every kind of process, run as a user runs it: its metrics after real work, and its log.

One scenario is run once; the tests read what was recorded.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsea_mq.cli.processes import Child, LocalSystem
from fedsea_mq.load.plan import LoadPlan
from fedsea_mq.settings import Settings
from fedsea_mq.telemetry.measures import ALL, Kind
from tests.integration.scraping import Scrape
from tests.integration.train_command import short_run

ROOT = Path(__file__).parents[2]
PROMPTS = ["Kewyn is a weaver. She lives in Marshmoor.", "Jonelle keeps a blue fox.", "Pim eats"]
LONG = {"max_new_tokens": 150, "ignore_eos": True}
# Metrics that this scenario has no reason to show: nothing is refused in it.
NOT_SEEN = {"fedsea_refused_frames_total", "fedsea_training_validation_loss"}


@dataclass
class Seen:
    """What the processes said and showed."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    # While a long answer was on its way, and when all were there.
    during: dict[str, Scrape] = field(default_factory=dict)
    after: dict[str, Scrape] = field(default_factory=dict)
    # Of processes whose work has no end here.
    load: Scrape = field(default_factory=lambda: Scrape([]))
    progress: dict[str, int] = field(default_factory=dict)
    trainer: Scrape = field(default_factory=lambda: Scrape([]))
    aggregator: Scrape = field(default_factory=lambda: Scrape([]))
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def scrapes(self) -> list[Scrape]:
        return [*self.after.values(), self.load, self.trainer, self.aggregator]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return asyncio.run(scenario(tmp_path_factory.mktemp("metrics")))


async def scenario(folder: Path) -> Seen:
    overrides = ["metrics.port=0", "log.level=debug", "log.format=json", "training.clients=1"]
    settings = Settings.load(None, [*short_run(folder), *overrides, "federation.rounds=1000"])
    seen = Seen()
    async with LocalSystem(settings, trunks=1) as system:
        await served(system, seen)
        await loaded(system, seen)
        await trained(system, seen)
        for child in system.children:
            seen.logs[child.name] = [json.loads(line) for line in child.log().splitlines()]
    return seen


async def served(system: LocalSystem, seen: Seen) -> None:
    client = await system.start_client("client")
    parties = {"broker": system.broker, "trunk": system.trunks[0], "client": client}
    await client.wait_ready()
    client.ask({"id": "long", "prompt": PROMPTS[0], "sampling": LONG})
    assert "token" in await client.line()
    seen.during = {role: await scraped(party) for role, party in parties.items()}
    for number, prompt in enumerate(PROMPTS):
        client.ask({"id": str(number), "prompt": prompt, "sampling": {"max_new_tokens": 5}})
    async with asyncio.timeout(60):
        while len(seen.answers) < 1 + len(PROMPTS):
            line = await client.line()
            seen.answers += [line["done"]] if "done" in line else []
        # What a client says last, that its session is over, is still on its way.
        while not seen.after or seen.after["trunk"].value("fedsea_sessions"):
            seen.after = {role: await scraped(party) for role, party in parties.items()}


async def loaded(system: LocalSystem, seen: Seen) -> None:
    load = await system.start_load("load")
    await load.wait_ready()
    lengths = {"low": 4, "high": 4}
    plan = LoadPlan.model_validate(
        {"sessions": [2], "prompt": lengths, "new": lengths, "duration_s": 30}
    )
    load.ask(plan.model_dump(mode="json"))
    while not seen.progress.get("done"):
        seen.progress = (await load.line()).get("progress", {})
    seen.load = await scraped(load)
    await load.stop()


async def trained(system: LocalSystem, seen: Seen) -> None:
    named = system.settings.replace(training={"member": "clinic-1"})
    aggregator = await system.start("nodes.aggregator", "aggregator")
    trainer = await system.start("nodes.trainer", "trainer", named)
    for party in (aggregator, trainer):
        await party.wait_ready()
    async with asyncio.timeout(60):
        while (await trainer.line()).get("event") != "round":
            pass
        while (await aggregator.line()).get("event") != "round_done":
            pass
    seen.trainer, seen.aggregator = await scraped(trainer), await scraped(aggregator)
    for party in (trainer, aggregator):
        await party.stop()


async def scraped(child: Child) -> Scrape:
    return await Scrape.of(child.ready["metrics"])


def test_a_client_shows_the_requests_tokens_and_bytes_that_it_reported(seen: Seen) -> None:
    client = seen.after["client"]
    new = sum(answer["new_tokens"] for answer in seen.answers)
    assert client.value("fedsea_requests_total", outcome="done") == 4
    assert client.value("fedsea_requests_total", outcome="failed") == 0
    assert client.value("fedsea_tokens_total", kind="new") == new
    assert client.value("fedsea_tokens_total", kind="prompt") == sum(
        answer["prompt_tokens"] for answer in seen.answers
    )
    assert client.value("fedsea_ttft_seconds_count") == 4
    ttft_s = sum(answer["ttft_ms"] for answer in seen.answers) / 1000
    assert client.value("fedsea_ttft_seconds_sum") == pytest.approx(ttft_s, abs=1e-4)
    tpot_s = sum(answer["tpot_ms"] for answer in seen.answers) / 1000
    assert client.value("fedsea_tpot_seconds_sum") == pytest.approx(tpot_s, abs=1e-4)
    decode_bytes = sum(
        answer["bytes_up_per_token"] * (answer["new_tokens"] - 1) for answer in seen.answers
    )
    sent = client.value("fedsea_bytes_total", direction="up")
    assert decode_bytes < sent < 2 * decode_bytes
    assert client.value("fedsea_failovers_total") == client.value("fedsea_retries_total") == 0


def test_what_a_client_sent_is_what_the_broker_relayed_and_the_trunk_got(seen: Seen) -> None:
    client, broker, trunk = (seen.after[role] for role in ("client", "broker", "trunk"))
    frames = {
        role: {way: scrape.value("fedsea_frames_total", direction=way) for way in ("up", "down")}
        for role, scrape in seen.after.items()
    }
    assert frames["client"]["up"] == frames["broker"]["up"]
    # The broker and its nodes, and clients that have a session, send each other heartbeats besides.
    assert frames["client"]["down"] >= frames["broker"]["down"]
    assert frames["trunk"]["up"] > frames["broker"]["up"]
    sent = client.value("fedsea_bytes_total", direction="up")
    assert 0.9 * sent < broker.value("fedsea_bytes_total", direction="up") < sent
    assert trunk.value("fedsea_bytes_total", direction="up") > 0.9 * sent


def test_sessions_and_their_memory_show_while_they_last(seen: Seen) -> None:
    for role in ("client", "broker", "trunk"):
        assert seen.during[role].value("fedsea_sessions", role=role) == 1
        assert seen.after[role].value("fedsea_sessions", role=role) == 0
    during, after = seen.during["trunk"], seen.after["trunk"]
    (long,) = [answer for answer in seen.answers if answer["new_tokens"] == 150]
    reserved = during.value("fedsea_kv_reserved_bytes")
    assert reserved > 0
    assert reserved % (long["prompt_tokens"] + 150 - 1) == 0
    assert after.value("fedsea_kv_reserved_bytes") == 0
    assert 0 < after.value("fedsea_kv_budget_bytes") <= 1024 << 20
    assert after.value("fedsea_sessions_opened_total") == 4
    assert seen.after["broker"].value("fedsea_nodes", kind="trunk") == 1
    assert seen.after["broker"].value("fedsea_nodes", kind="aggregator") == 0


def test_a_trunk_shows_each_position_that_it_computed(seen: Seen) -> None:
    trunk = seen.after["trunk"]
    computed = sum(answer["prompt_tokens"] + answer["new_tokens"] - 1 for answer in seen.answers)
    assert trunk.value("fedsea_batch_positions_sum") == computed
    steps = trunk.value("fedsea_step_seconds_count")
    assert steps == trunk.value("fedsea_batch_sessions_count")
    works = trunk.value("fedsea_batch_sessions_sum")
    assert works == trunk.value("fedsea_queue_wait_seconds_count") >= steps
    compute_s = trunk.value("fedsea_compute_seconds_total")
    assert compute_s == pytest.approx(trunk.value("fedsea_step_seconds_sum"))
    assert trunk.value("fedsea_queue_depth") == 0


def test_a_load_process_shows_what_its_clients_meet(seen: Seen) -> None:
    done = seen.load.value("fedsea_requests_total", outcome="done")
    assert done >= seen.progress["done"] > 0
    assert seen.load.value("fedsea_tokens_total", kind="new") == 4 * done
    assert seen.load.value("fedsea_ttft_seconds_count") == done
    assert seen.load.value("fedsea_bytes_total", direction="up") > 0


def test_training_shows_rounds_steps_and_loss(seen: Seen) -> None:
    trainer, aggregator = seen.trainer, seen.aggregator
    assert trainer.labels("node") == {"clinic-1"}
    steps = trainer.value("fedsea_training_steps_total")
    assert steps >= 2
    assert trainer.value("fedsea_training_step_seconds_count") == steps
    assert trainer.value("fedsea_training_samples_total") == 2 * steps
    assert trainer.value("fedsea_training_updates_total", fate="counted") >= 1
    assert 0 < trainer.value("fedsea_training_loss") < 20
    assert aggregator.value("fedsea_training_round") >= 1
    assert aggregator.value("fedsea_training_members") == 1
    assert aggregator.value("fedsea_training_updates_total", fate="counted") >= 1
    assert 0 < aggregator.value("fedsea_training_loss") < 20


def test_every_metric_of_the_list_is_shown_and_none_that_is_not_in_it(seen: Seen) -> None:
    listed = {
        measure.name + suffix
        for measure in ALL
        for suffix in (["_bucket", "_count", "_sum"] if measure.kind is Kind.HISTOGRAM else [""])
    }
    shown = {name for scrape in seen.scrapes for name in scrape.names}
    assert {name for name in shown if name.startswith("fedsea_")} == listed - NOT_SEEN


def test_what_is_documented_is_what_there_is() -> None:
    page = (ROOT / "docs/how-to/monitor.md").read_text()
    documented = set(re.findall(r"^\| `(fedsea_[a-z_]+)`", page, re.MULTILINE))
    assert documented == {measure.name for measure in ALL}


def test_a_requests_trace_is_in_the_log_of_each_party(seen: Seen) -> None:
    logs = {role: seen.logs[name] for role, name in PARTIES.items()}
    ended = [line for line in logs["client"] if line["event"] == "request ended"]
    traces = {line["trace_id"] for line in ended}
    assert len(traces) == len(ended) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces)
    for role, event in (("broker", "session placed"), ("trunk", "session opened")):
        told = {
            line["trace_id"] for line in logs[role] if line["event"] == event and "trace_id" in line
        }
        assert told == traces
    closed = {line.get("trace_id") for line in logs["trunk"] if line["event"] == "session closed"}
    assert closed >= traces


def test_nothing_that_was_said_is_in_logs_or_metrics(seen: Seen) -> None:
    said = json.dumps(seen.logs) + str([scrape.samples for scrape in seen.scrapes])
    answers = [answer["text"] for answer in seen.answers]
    for text in (*PROMPTS, *answers):
        for word in re.findall(r"[A-Z][a-z]{3,}", text):
            assert word not in said


PARTIES = {"broker": "broker", "trunk": "trunk-0", "client": "client"}


def test_the_dashboard_asks_for_nothing_that_no_process_shows(seen: Seen) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/fedsea.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(asked) > 20
    shown = {name for scrape in seen.scrapes for name in scrape.names}
    for query in asked:
        names = set(re.findall(r"\b(?:fedsea|process)_[a-z_]+", query))
        assert names
        assert names - shown <= NOT_SEEN, query
        for label, value in re.findall(r'(\w+)="([a-z]+)"', query):
            assert any(value in scrape.labels(label) for scrape in seen.scrapes), query


def test_the_scrape_example_names_ports_and_paths_as_they_are() -> None:
    example = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = example["scrape_configs"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    targets = [target for config in job["static_configs"] for target in config["targets"]]
    text = (ROOT / "configs/one-machine.yaml").read_text()
    first = int(re.findall(r"port: (94\d\d)", text)[0])
    # The broker's and its two trunk nodes', as `fedsea up` counts on.
    assert targets == [f"127.0.0.1:{first + number}" for number in range(3)]
