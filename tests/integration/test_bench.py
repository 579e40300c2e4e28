"""The benchmark as a command: what it measures is there, what it cannot measure is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedsea_mq.cli.bench.command import bench, print_report
from fedsea_mq.cli.bench.comparison import Comparison, Outcome, Ratio
from fedsea_mq.cli.bench.continuous import continuous_batch
from fedsea_mq.cli.bench.serving import COMPARISONS, chosen
from fedsea_mq.cli.bench.unsplit import load_unsplit
from fedsea_mq.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_one_comparison_reports_its_ratios_with_goals_and_repeats(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fedsea_mq.cli", "bench", "serving", "--json"),
            *("--only", "linear_gemm", "--repeats", "2", "--out", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=True,
    )
    report = json.loads(done.stdout)
    assert set(report["ratios"]) == {"attention_bandwidth", "linear_gemm"}
    for ratio in report["ratios"].values():
        assert len(ratio["repeats"]) == 2
        assert 0 < ratio["value"] < 5
        assert ratio["met"] == (ratio["value"] >= ratio["goal"])
    assert report["machine"]["was_busy"] == (report["machine"]["load_average_before"] > 0.5)
    assert not (tmp_path / "serving.png").exists()  # no curve is of this comparison
    assert report["measured"]["floors"][0]["read_bytes_per_s"] > 1e9
    assert json.loads((tmp_path / "serving.json").read_text()) == report


def test_continuous_batching_gives_the_tokens_of_generate(tiny_llama: Path) -> None:
    model = load_unsplit(str(tiny_llama), "fp32")
    ids = torch.randint(
        model.config.vocab_size, (6, 40), generator=torch.Generator().manual_seed(0)
    )
    alone = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
    )
    for requests in (2, 6):
        _, tokens = continuous_batch(model, ids, 8, requests=requests)
        assert tokens == alone[:, 40:].tolist()


def test_names_are_those_of_comparisons_and_ratios_and_others_are_refused() -> None:
    assert [one.name for one in chosen(["jain", "relaying"])] == ["relaying", "fairness"]
    assert [one.name for one in chosen([])] == [one.name for one in COMPARISONS if not one.slow]
    with pytest.raises(ConfigError, match="--only speed"):
        chosen(["speed"])


def test_the_help_names_every_comparison() -> None:
    help_ = CliRunner().invoke(bench, ["serving", "--help"], terminal_width=400).stdout
    words = set(help_.replace(",", " ").replace(";", " ").split())
    assert {one.name for one in COMPARISONS} <= words


def test_people_see_repeats_what_a_ratio_is_over_and_that_the_machine_was_busy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ratio = Ratio("r", "ours over theirs", 2.0)
    outcome = Outcome(Comparison("c", (ratio,), _never))
    outcome.repeats = [({"r": value}, {}) for value in (9.0, 3.0, 1.0)]
    machine = {"cores": 2, "load_average_before": 3.25, "was_busy": True}
    print_report({"ratios": outcome.as_json()["ratios"], "machine": machine}, "serving")
    shown = " ".join(capsys.readouterr().out.split())
    for said in ("9 3 1", "r: ours over theirs", "load average 3.2 on 2 cores"):
        assert said in shown


async def _never(_: object) -> tuple[dict[str, float], dict[str, object]]:
    raise AssertionError


@pytest.mark.parametrize(("at_most", "met"), [(False, True), (True, False)])
def test_the_median_of_the_repeats_counts(at_most: bool, met: bool) -> None:
    ratio = Ratio("r", "says", 2.0, at_most=at_most)
    outcome = Outcome(Comparison("c", (ratio,), _never))
    outcome.repeats = [({"r": value}, {"seen": value}) for value in (9.0, 3.0, 1.0)]
    told = outcome.as_json()
    assert told["ratios"]["r"]["value"] == 3.0
    assert told["ratios"]["r"]["met"] is met
    assert told["measured"] == [{"seen": 9.0}, {"seen": 3.0}, {"seen": 1.0}]


def test_a_ratio_that_nobody_set_a_goal_for_is_told_without_one() -> None:
    outcome = Outcome(Comparison("c", (Ratio("r", "says"),), _never), [({"r": 3.0}, {})])
    assert outcome.as_json()["ratios"] == {"r": {"value": 3.0, "repeats": [3.0], "says": "says"}}
