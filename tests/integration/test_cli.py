"""The `fedsea` command as a user runs it: real processes, real output."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedsea_mq.model.adapters import split_adapter
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.partition import Cut
from fedsea_mq.settings import Settings
from tests.adapters import make_adapter, with_adapter
from tests.ports import free_port

ROOT = Path(__file__).parents[2]


def fedsea(*arguments: str, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "fedsea_mq.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def report(*arguments: str, stdin: str = "") -> Any:
    return json.loads(fedsea(*arguments, "--json", stdin=stdin).stdout)


@contextmanager
def system_up(tmp_path: Path, *overrides: str) -> Iterator[Path]:
    """`fedsea up` with one trunk node until the test is over; gives the file that clients use."""
    endpoints = [
        f"broker.clients=tcp://127.0.0.1:{free_port()}",
        f"broker.nodes=tcp://127.0.0.1:{free_port()}",
    ]
    config = tmp_path / "system.yaml"
    Settings.load(None, ["log.level=warning", *endpoints, *overrides]).write(config)
    up = subprocess.Popen(
        [sys.executable, "-m", "fedsea_mq.cli", "up", "--config", str(config)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert up.stdout is not None
    try:
        for line in up.stdout:
            if line.startswith("ready"):
                break
        else:
            pytest.fail("fedsea up ended before it was ready")
        yield config
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(30) == 0


def test_demo_streams_from_three_clients_over_two_trunk_nodes_with_noise_on() -> None:
    done = report("demo")
    assert len(done["nodes"]) == 2
    assert len(done["clients"]) >= 3
    for client in done["clients"]:
        assert client["text"]
        assert client["sigma"] > 0
        assert client["ttft_ms"] > 0
        assert client["new_tokens"] > 1
        for way in ("up", "down"):
            floor = 2 * 256  # hidden size x bytes of fp16
            assert floor < client[f"bytes_{way}_per_token"] <= 1.5 * floor


def test_the_demo_shows_questions_and_answers_to_a_person() -> None:
    shown = fedsea("demo").stdout
    assert "client-2" in shown
    assert "Noise is not encryption" in shown


def test_up_generate_chat_and_status(tmp_path: Path) -> None:
    with system_up(tmp_path, "trunk.nodes=2") as config:
        use = ["--config", str(config)]
        passage = "Kewyn is a weaver. She lives in Marshmoor.\nWhere does Kewyn live?"
        one = report("generate", passage, "--chat", *use)
        assert one["text"]
        assert one["finish"] == "stop"
        piped = report("generate", "-", "--chat", *use, stdin=passage)
        assert piped["text"] == one["text"]
        asked = passage.replace("\n", "\\n")
        typed = ["/again", "/help", "/new", asked, "/again", "/quit", "Once"]
        talked = fedsea("chat", *use, stdin="\n".join(typed))
        # Nothing but the passage went to the model, twice.
        assert talked.stdout == (one["text"] + "\n") * 2
        for said in ("nothing was asked yet", "unknown command", "a new conversation"):
            assert said in talked.stderr
        interrupted_at_the_prompt(use)
        capped = report("generate", "Once", "--max-new-tokens", "5", *use)
        assert capped["new_tokens"] <= 5
        seen = report("status", *use)
        assert len(seen["nodes"]) == 2
        assert seen["frames_relayed"] > 10
        assert seen["errors"] == 0
        assert seen["sessions"] == 0
        assert "2 nodes" in fedsea("status", "--once", *use).stdout
        # What is killed is started again, where it was.
        for process in started_for("broker", "nodes.trunk"):
            process.kill()
        assert report("generate", passage, "--chat", *use)["text"] == one["text"]


def started_for(*modules: str) -> list[psutil.Process]:
    """Processes of these modules that run for this test."""
    found = [p for p in psutil.Process().children(recursive=True) if p.cmdline()[2] in modules]
    assert {process.cmdline()[2] for process in found} == set(modules)
    return found


def interrupted_at_the_prompt(use: list[str]) -> None:
    """Ctrl-C on a terminal, while nobody types."""
    ours, theirs = pty.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "fedsea_mq.cli", "chat", *use],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while b"> " not in shown:
        shown += os.read(ours, 4096)
    chat.send_signal(signal.SIGINT)
    try:
        assert chat.wait(20) == 130
    finally:
        chat.kill()
        os.close(ours)


def test_a_model_that_cannot_chat_is_refused_before_anybody_is_asked(tiny_llama: Path) -> None:
    nobody = f"broker.clients=tcp://127.0.0.1:{free_port()}"
    away = ["--set", nobody, "--set", f"model.path={tiny_llama}"]
    refused = fedsea("chat", *away, stdin="hello\n", status=1)
    assert "no tokenizer" in refused.stderr


def test_json_lines_that_ask_wrongly_are_answered_by_their_id(tmp_path: Path) -> None:
    with system_up(tmp_path) as config:
        asked = [
            '{"id": "a"}',
            '{"id": "b", "prompt": "Once", "tokens": [1]}',
            '{"id": "c", "prompt": 5}',
            "garbage",
            '{"id": "d", "tokens": [1, 2], "sampling": {"max_new_tokens": 2}}',
        ]
        done = subprocess.run(
            [sys.executable, "-m", "nodes.client", "--config", str(config)],
            input="\n".join(asked) + "\n",
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    said = {line.get("id"): line["message"] for line in lines if "error" in line}
    assert set(said) == {"a", "b", "c", None}
    assert "exactly one of prompt" in said["a"]
    assert said["c"].startswith("prompt: ")
    assert any(line.get("id") == "d" and "done" in line for line in lines)


@pytest.fixture(scope="module")
def scores() -> Any:
    return report("eval", "--n", "40")


def test_eval_reports_the_tasks_with_and_without_noise(scores: Any) -> None:
    assert scores["sigma"] > 0 == scores["noise_off"]["sigma"]
    for one in (scores, scores["noise_off"]):
        assert one["cut"] == "1+1"
        # Below the measured scores: forty examples say little, but a broken model says less.
        assert one["understanding_accuracy"] >= 0.9
        assert one["conversation_f1"] >= 0.85
        assert one["summary_rouge_l"] >= 0.8


def test_eval_scores_a_task_from_a_file(tmp_path: Path) -> None:
    answers = [{"idx": 0, "text": "Hens", "label": 0}, {"idx": 1, "text": "Bees", "label": 1}]
    questions = [
        {"idx": number, "question": asked, "answers": answers}
        for number, asked in enumerate(("What does Toban keep?", "What has Toban?", "Which?"))
    ]
    record = {"idx": 0, "passage": {"text": "Toban keeps bees. " * 200, "questions": questions}}
    (tmp_path / "val.jsonl").write_text(json.dumps(record) + "\n")
    found = report("eval", "--task", "superglue/multirc", "--data", str(tmp_path), "--n", "2")
    assert (found["task"], found["n"], found["answers"]) == ("superglue/multirc", 2, 4)
    assert found["sigma"] > 0 == found["noise_off"]["sigma"]
    for one in (found, found["noise_off"]):
        assert 0 <= one["f1a"] <= 1
        assert one["em"] in {0.0, 0.5, 1.0}


def test_eval_names_the_line_of_a_bad_record_and_starts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "p", "answer": "a"}\n{"prompt": "sesame"}\n')
    done = fedsea("eval", "--task", f"jsonl:{file}", status=1)
    told = done.stderr.replace("\n", "")
    assert "own.jsonl:2: answer: Field required" in told
    assert "sesame" not in told


def test_shards_and_parts_of_an_adapter_are_served_without_the_whole(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    sizes = report("shard", "--model", "embedded", "--out", str(out), "--head", "2", "--tail", "1")
    assert sizes["trunk"] > sizes["tail"] > 0
    for part in ("head", "tail"):
        assert (out / part / "tokenizer.json").exists()
    assert not (out / "trunk" / "tokenizer.json").exists()
    trunk_only, client_only = tmp_path / "server", tmp_path / "client"
    for folder, parts in ((trunk_only, ["trunk"]), (client_only, ["head", "tail"])):
        folder.mkdir()
        for part in parts:
            (out / part).rename(folder / part)
    checkpoint = Checkpoint.open("embedded")
    adapter = make_adapter(
        checkpoint.folders[0], tmp_path / "formal", LoraSettings(), blocks=[1, 2]
    )
    parts_of = tmp_path / "parts"
    split_adapter(adapter, Cut(2, 1), checkpoint.blocks, parts_of)
    (parts_of / "trunk").rename(tmp_path / "at the trunk")
    trunks = [f"model.path={trunk_only}", "model.head_blocks=2", "noise.mode=off"]
    held = f"trunk.adapters={{formal: {tmp_path / 'at the trunk'}}}"
    prompt = "Kewyn keeps a striped dog."
    with system_up(tmp_path, *trunks, held) as config:
        answer = report(
            "generate", prompt, "--config", str(config), "--max-new-tokens", "8",
            "--set", f"model.path={client_only}", "--set", "client.wire_dtype=fp32",
            "--set", f"client.adapters={{formal: {parts_of}}}", "--adapter", "formal",
        )  # fmt: skip
    ids = checkpoint.tokenizer(prompt, return_tensors="pt")
    model = with_adapter(checkpoint.folders[0], adapter)
    told = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert answer["text"] == checkpoint.tokenizer.decode(told, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--set", "noise.scal=1"], "unknown key noise.scal"),
        (["demo", "--set", "noise.scale=much"], "noise.scale: expected a valid number"),
        (["demo", "--set", "noise"], "expected section.key=value"),
        (["up", "--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["generate", "x", "--top-p", "0"], "--top-p: expected greater than 0"),
        (["eval", "--task", "boolq"], "expected one of superglue/boolq"),
        (["eval", "--data", "somewhere"], "--data: of which --task?"),
    ],
)
def test_bad_settings_are_named_and_exit_2(arguments: list[str], said: str) -> None:
    assert said in " ".join(fedsea(*arguments, status=2).stderr.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "--model", "/no/such/folder"], "no such folder"),
        (["demo", "--set", "model.head_blocks=6"], "leave at least one block for the trunk"),
        (
            ["status", "--once", "--set", "broker.clients=tcp://127.0.0.1:9"],
            "PeerUnreachable: no answer to STATUS from the broker at tcp://127.0.0.1:9",
        ),
        (
            ["loadtest", "--join", "--set", "broker.clients=tcp://127.0.0.1:9"],
            "from the broker at tcp://127.0.0.1:9 within 5 s",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line_and_exits_1(arguments: list[str], said: str) -> None:
    done = fedsea(*arguments, status=1)
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_pretraining_writes_a_model_that_loads(tmp_path: Path) -> None:
    started = time.monotonic()
    done = fedsea("pretrain", "--out", str(tmp_path / "model"), "--steps", "3", "--json")
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert steps[-1]["step"] == 3
    assert time.monotonic() - started < 120
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 16 << 20
    assert (tmp_path / "model" / "tokenizer.json").exists()
