"""Plans against real systems: bytes on real sockets, memory of real processes, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fedsea_mq.cli.__main__ import app
from fedsea_mq.cli.bench.planned import bench_plan
from fedsea_mq.cli.plan.command import as_bytes
from fedsea_mq.cli.plan.forecasting import forecaster
from fedsea_mq.cli.plan.token_times import client_peak_bytes, trunk_peak_bytes
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.errors import ConfigError
from fedsea_mq.load.plan import Link
from fedsea_mq.model.checkpoint import read_config
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.forecast import Demand, Forecast
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch
from tests.conftest import MakeModel
from tests.integration.systems import running
from tests.unit.planning.speeds import speed

MB = 1_000_000


def forecast(settings: Settings, cut: Cut, demand: Demand) -> Forecast:
    of = Architecture.of(read_config(settings.model.path))
    known = speed(settings.model.dtype)
    return forecaster(of, settings, (known, known), Link(), demand).forecast(cut)


@pytest.mark.parametrize("cut", [Cut(1, 1), Cut(2, 0)])
@pytest.mark.parametrize("prompt", [5, 16, 41])
@pytest.mark.parametrize("dtype", ["fp16", "int8"])
async def test_predicted_bytes_are_those_that_real_sockets_carry(
    tiny_llama: Path, cut: Cut, prompt: int, dtype: str
) -> None:
    overrides = [
        *(f"model.head_blocks={cut.head_blocks}", f"model.tail_blocks={cut.tail_blocks}"),
        *("trunk.max_frame_positions=16", "trunk.name=trunk-0", f"client.wire_dtype={dtype}"),
    ]
    async with running(tiny_llama, *overrides) as system:
        generation = system.client.generate(
            [7] * prompt, SamplingSettings(max_new_tokens=9, ignore_eos=True)
        )
        await generation.complete()
        settings, traffic = system.settings, generation.stats.traffic
    said = forecast(settings, cut, Demand(prompt, 9))
    assert (said.request.up, said.request.down) == (traffic.bytes_up, traffic.bytes_down)
    up, down = generation.stats.bytes_per_token
    assert (said.token.up, said.token.down) == (round(up), round(down))


async def test_predicted_memory_is_that_of_real_processes(make_model: MakeModel) -> None:
    """What a model of 90 million parameters adds to processes that are ready to load it."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12}
    large = make_model("llama", vocab_size=16_000, num_hidden_layers=9, **sizes)
    demand, cut = Demand(300, 8), Cut(1, 1)
    settings = Settings().replace(
        model={"path": str(large)}, broker={"heartbeat_ms": 100}, log={"level": "warning"}
    )
    async with LocalSystem(settings, trunks=1) as system:
        client = await client_peak_bytes(system, demand.prompt, demand.new)
        async with StatusWatch(system.settings.broker) as watch:
            trunk = await trunk_peak_bytes(watch)
        before = [child.ready["baseline_rss"] for child in (system.children[-1], system.trunks[0])]
    said, process = forecast(settings, cut, demand), speed().system
    predicted = (
        said.client_bytes - process.client_process_bytes,
        said.trunk_bytes - process.trunk_process_bytes,
    )
    grown = (client - before[0], trunk - before[1])
    assert min(predicted) > 150 * MB
    assert grown == pytest.approx(predicted, rel=0.2)


def plan(*arguments: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, ["plan", *arguments], terminal_width=200)


@pytest.fixture
def known_speeds(tmp_path: Path) -> list[str]:
    """The options by which nothing is measured."""
    file = tmp_path / "speed.json"
    speed("fp32").write(file)
    return ["--speed", str(file), "--client-speed", str(file)]


def planned(known_speeds: list[str], *arguments: str) -> Any:
    done = plan(*known_speeds, "--json", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_plan_of_the_embedded_model_names_every_cut_and_recommends_one(
    known_speeds: list[str],
) -> None:
    told = planned(
        known_speeds,
        *("--model", "embedded", "--client-memory", "510MB", "--link-ms", "50"),
        *("--link-mbps", "100", "--prompt", "64", "--new", "16", "--price-per-hour", "2.5"),
    )
    rows = {row["cut"]: row for row in told["cuts"]}
    assert len(rows) == 21
    assert told["link"] == {"round_trip_ms": 50, "mbps": 100}
    assert all(row["tpot_ms"] > 50 for row in rows.values())
    assert rows["1+1"]["audited"] == {"recovery": 1.0, "noise": 0.5}
    assert rows["2+2"]["audited"] is None
    assert {row["fits"] for row in rows.values()} == {True, False}
    assert all(row["fits"] is (row["client_bytes"] <= 510_000_000) for row in rows.values())
    assert rows["1+1"]["cost_per_million_tokens"] > 0
    chosen = rows[told["recommended"]["cut"]]
    assert chosen["fits"]
    assert told["recommended"]["reason"].startswith(chosen["cut"])
    assert any(row["on_front"] for row in rows.values())


def test_a_config_alone_is_planned_and_people_see_a_table(
    make_model: MakeModel, tmp_path: Path, known_speeds: list[str]
) -> None:
    config = (make_model("qwen2") / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)
    done = plan(*known_speeds, "--model", str(tmp_path), "--prompt", "9", "--new", "2", "--all")
    assert done.exit_code == 0, done.output
    assert "10 cuts, 10 fit, 10 shown" in " ".join(done.stdout.split())
    assert "? if not audited" in " ".join(done.stdout.split())


def test_where_nothing_fits_it_says_so_and_exits_1(known_speeds: list[str]) -> None:
    done = plan(*known_speeds, "--client-memory", "10MB", "--prompt", "9", "--new", "2")
    assert done.exit_code == 1
    assert "No cut fits" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "4000"], "the model holds 2048"),
        (["--client-memory", "much"], "size 'much'"),
        (["--audit", "README.md"], "not the report.json of an audit"),
        (["--speed", "README.md"], "README.md: "),
    ],
)
def test_what_cannot_be_planned_is_refused(
    known_speeds: list[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        CliRunner().invoke(app, ["plan", *known_speeds, *arguments], catch_exceptions=False)


def test_an_audit_of_another_model_is_refused(tmp_path: Path, known_speeds: list[str]) -> None:
    rows = [
        {
            **{"fingerprint": "0" * 64, "attack": "any", "knowledge": "any", "cut": "1+1"},
            **{"token_recovery": 0.5, "sigma": 1.0, "sigma_over_head_rms": 1.0},
        }
    ]
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"strongest": rows}))
    refused = plan(*known_speeds, "--audit", str(file)).exception
    assert isinstance(refused, ConfigError)
    assert "is of no cut of embedded" in str(refused)


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("512MiB", 512 << 20), ("1.5 gib", 3 << 29), ("7kB", 7000)],
)
def test_sizes_are_read_in_tens_and_in_twos(text: str, size: int) -> None:
    assert as_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "8 PB", "-1GB", "1e9", "7", "7B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number and a unit"):
        as_bytes(text)


@pytest.mark.slow
def test_this_machine_is_measured_and_the_file_read_again(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    done = plan("measure", "--model", str(tiny_llama), "--out", str(file), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert json.loads(file.read_text()) == found
    assert found["system"]["client_process_bytes"] > 100 * MB
    assert found["blocks"]["chunk_flops_per_s"] > 1e6
    speeds = ["--speed", str(file), "--client-speed", str(file)]
    told = planned(speeds, "--model", str(tiny_llama), "--prompt", "20", "--new", "5")
    assert told["speeds"]["trunk"] == found


@pytest.mark.slow
async def test_the_bench_compares_every_figure_at_every_cut_over_every_link() -> None:
    report = await bench_plan(1)
    assert len(report["rows"]) == 2 * 3 * 2
    worst = max(max(row["relative_error"].values()) for row in report["rows"])
    assert report["worst_relative_error"] == worst
    for row in report["rows"]:
        error = row["relative_error"]
        assert max(error["bytes_up"], error["bytes_down"]) < 0.01
        assert max(error["client_bytes"], error["trunk_bytes"]) < 0.2
