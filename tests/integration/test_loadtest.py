"""Load tests of a real system by simulated clients: every request is accounted for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_loadtest(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedsea_mq.cli", "loadtest", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        check=False,
    )


def loadtest(*arguments: str) -> Any:
    done = run_loadtest(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_thin_clients_in_a_closed_loop(tmp_path: Path) -> None:
    report = loadtest(
        *("--clients", "6", "--sessions", "2", "--prompt", "8-24", "--new", "12"),
        *("--duration", "4", "--warmup", "1", "--processes", "2", "--out", str(tmp_path)),
    )
    assert report["requests"]["errors"] == {}
    assert report["requests"]["done"] > 12
    assert report["tokens_per_s"] > 50
    assert report["ttft_ms"]["p50"] > 0
    assert report["tpot_ms"]["p50"] <= report["tpot_ms"]["p99"]
    assert report["mean_batch"] > 1.5
    assert 0 < report["trunk_busy"] <= 1
    assert report["jain"] > 0.8
    assert report["measured_s"] == 3
    assert report["sessions_peak"] == 12
    assert report["kv_reserved_peak"] >= 12 * (8 + 12)
    assert report["plan"]["link"]["mbps"] is None
    assert set(report["memory"]) == {"broker", "trunk-0", "load-0", "load-1"}
    assert json.loads((tmp_path / "loadtest.json").read_text()) == report
    assert "| TTFT |" in (tmp_path / "loadtest.md").read_text()
    assert (tmp_path / "loadtest.png").read_bytes().startswith(b"\x89PNG")


def test_full_clients_over_a_slow_link_by_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    requests = [{"at_s": n / 4, "prompt_tokens": 5 + n, "new_tokens": 4} for n in range(8)]
    trace.write_text("".join(json.dumps(request) + "\n" for request in requests))
    report = loadtest(
        *("--full", "--clients", "2", "--arrivals", f"trace:{trace}", "--link", "20,0,100,0"),
        *("--duration", "4", "--warmup", "0"),
    )
    assert report["requests"]["done"] == 8
    assert report["requests"]["errors"] == {}
    assert report["new_tokens"] == 32
    assert report["ttft_ms"]["p50"] >= 80  # to open and to prefill, there and back each
    assert report["tpot_ms"]["p50"] >= 40


def test_who_stops_or_vanishes_is_counted_and_leaves_room_for_others() -> None:
    report = loadtest(
        *("--clients", "8", "--arrivals", "bursts:40,10", "--prompt", "8", "--new", "8"),
        *("--stops", "0.3", "--vanishes", "0.3", "--duration", "4", "--warmup", "0"),
        *("--set", "trunk.lease_s=0.5", "--set", "trunk.max_sessions=24"),
    )
    counted = report["requests"]
    assert counted["errors"] == {}
    assert min(counted["done"], counted["stopped"], counted["vanished"]) > 5
    assert report["kv_used"] > 0


def test_a_test_in_which_all_failed_exits_1_and_names_the_limit(tmp_path: Path) -> None:
    done = run_loadtest(
        *("--clients", "2", "--prompt", "5000", "--duration", "2", "--out", str(tmp_path)),
        *("--set", "client.speculation=lookup"),
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "LoadTestFailed: no request succeeded in the measured 1.5 s" in said
    assert "this node holds 1 to" in said
    assert "thin clients do not speculate" in said
    report = json.loads((tmp_path / "loadtest.json").read_text())
    assert report["requests"]["errors"].keys() == {"LimitExceeded"}
    assert report["mean_batch"] is None
    assert (tmp_path / "loadtest.png").exists()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_load_test_leaves_no_process_behind(signal_number: int) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "fedsea_mq.cli", "loadtest", "--duration", "60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
    )
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    started: list[int] = []
    until = time.monotonic() + 60
    while len(started) < 3 and time.monotonic() < until:
        time.sleep(0.2)
        started = [int(pid) for pid in children.read_text().split()]
    assert len(started) == 3  # broker, trunk node, load
    running.send_signal(signal_number)
    assert running.wait(40) != 0
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < until:
        time.sleep(0.2)
    left = [pid for pid in started if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []
