"""What the README sends people to: configurations that are valid and examples that run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from fedsea_mq.settings import Settings
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_configuration_is_valid_and_leaves_the_noise_at_its_default(file: Path) -> None:
    assert Settings.load(file).noise == Settings().noise


def test_the_page_on_configuration_names_every_key() -> None:
    page = (ROOT / "docs/how-to/configure.md").read_text()
    for section, keys in Settings().model_dump().items():
        _, _, rest = page.partition(f"\n## {section}\n")
        table, _, _ = rest.partition("\n## ")
        assert {key for key in keys if f"\n| `{key}` |" in table} == set(keys), section


def example(name: str, *arguments: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_whole_system_runs_in_one_event_loop() -> None:
    assert "tokens from trunk-" in example("embed")


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last() -> None:
    exact = next(line for line in example("notebook").splitlines() if line.startswith("noise 0.0"))
    assert exact.split(":")[1].split("|")[0].strip() == "Marshmoor"


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_with_a_small_model_on_a_cpu() -> None:
    small = ["model.path=embedded", "model.device=cpu", "model.dtype=fp32"]
    sets = [word for one in (*small, "trunk.kv_memory_mb=256") for word in ("--set", one)]
    said = example("llama_2_7b", "Kewyn is a weaver.", "--new-tokens", "8", *sets)
    assert "on cpu" in said
    assert "8 tokens" in said


@pytest.mark.slow
def test_the_web_app_answers_over_http() -> None:
    port = free_port()
    app = subprocess.Popen(
        [sys.executable, "examples/web_app.py", "--alone", "--port", str(port)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert app.stderr is not None
    try:
        while "running on" not in (line := app.stderr.readline()):
            assert line, "the app ended before it listened"
        url = f"http://127.0.0.1:{port}"
        assert "<textarea" in httpx.get(url).text
        said = "Kewyn is a weaver. She lives in Marshmoor.\nWhere does Kewyn live?"
        asked = {"messages": [{"role": "user", "content": said}]}
        answer = httpx.post(f"{url}/chat", json=asked, timeout=60).text
        assert "event: done" in answer
        assert httpx.post(f"{url}/chat", json={"messages": []}).status_code == 400
    finally:
        app.send_signal(signal.SIGINT)
        app.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_silos_train_as_processes_and_agree(tmp_path: Path) -> None:
    out = tmp_path / "silos"
    said = example("three_silos", "--out", str(out), "--rounds", "2", "--steps", "2")
    losses = [float(line.split()[-1]) for line in said.splitlines() if " loss " in line]
    assert len(losses) == 3 * 2 * 2
    assert sum(losses[-3:]) < sum(losses[:3])
    heads = {
        (
            out / silo / f"runs/three-silos/members/{silo}/head/adapter_model.safetensors"
        ).read_bytes()
        for silo in ("north", "east", "south")
    }
    assert len(heads) == 1
    assert (out / "trunk/runs/three-silos/trunk/adapter/adapter_model.safetensors").is_file()
