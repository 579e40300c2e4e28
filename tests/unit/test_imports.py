"""Imports run one way: nodes and broker use fedsea_mq, the broker without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield str(node.module)


def importing(package: str, *modules: str) -> list[str]:
    """`file: module` of each import of one of `modules` inside `package`."""
    return [
        f"{file.relative_to(ROOT)}: {name}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for name in imports(file)
        if any(name == module or name.startswith(f"{module}.") for module in modules)
    ]


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import broker", "import broker.__main__", "import fedsea_mq.transport.status"],
)
def test_broker_and_status_run_where_torch_is_not_installed(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "fedsea_mq" in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "safetensors", "nodes"}


def test_tasks_need_no_torch_and_no_metrics_library_before_they_are_scored() -> None:
    loaded = loaded_by("import fedsea_mq.tasks.registry, fedsea_mq.tasks.evaluation")
    libraries = {"sklearn", "rouge_score", "nltk"}
    assert not loaded & {"torch", "transformers", "datasets", "nodes", *libraries}


def test_only_the_command_line_knows_nodes_and_broker() -> None:
    inside = importing("fedsea_mq", "nodes", "broker")
    assert [line for line in inside if not line.startswith("fedsea_mq/cli/")] == []


def test_the_broker_knows_no_nodes_and_nodes_no_broker() -> None:
    assert importing("broker", "nodes") == []
    assert importing("nodes", "broker") == []


def test_the_protocol_imports_nothing_of_ours_but_itself_and_the_errors() -> None:
    ours = importing("fedsea_mq/protocol", "fedsea_mq")
    allowed = ("fedsea_mq.protocol", "fedsea_mq.errors")
    assert ours
    assert [line for line in ours if not line.split(": ")[1].startswith(allowed)] == []


def test_the_protocol_does_no_io_and_no_arithmetic() -> None:
    assert importing("fedsea_mq/protocol", "torch", "zmq", "asyncio", "socket", "time") == []


def test_security_does_no_io_but_key_files_and_imports_what_it_must() -> None:
    assert importing("fedsea_mq/security", "torch", "zmq", "socket", "time") == []
    watch = importing("fedsea_mq/security", "asyncio")
    assert watch == ["fedsea_mq/security/trust_watch.py: asyncio"]
    allowed = ("protocol", "errors", "log", "section", "security", "serving")
    ours = importing("fedsea_mq/security", "fedsea_mq")
    assert {line.split(": ")[1].split(".")[1] for line in ours} == set(allowed)


def test_sockets_are_opened_in_the_transport_and_the_broker_alone() -> None:
    # But for what the benchmark measures the product against, which is not of the product; the
    # simulation stands in for sockets, and knows the names of their options and errors.
    found = [line for line in importing("fedsea_mq", "zmq") if "/cli/bench/" not in line]
    assert {line.split("/")[1] for line in found} == {"transport", "simulation"}
    assert importing("nodes", "zmq") == []


def test_the_scheduler_and_the_session_rules_hold_no_tensor_socket_or_clock() -> None:
    for name in ("scheduler", "trunk_sessions"):
        found = set(imports(ROOT / "fedsea_mq" / "serving" / f"{name}.py"))
        assert not found & {"torch", "zmq", "asyncio", "time"}


def test_telemetry_imports_what_it_must_and_opentelemetry_is_not_loaded_by_nodes() -> None:
    ours = [line.split(": ")[1] for line in importing("fedsea_mq/telemetry", "fedsea_mq")]
    allowed = {"protocol", "errors", "section", "telemetry"}
    assert {name.split(".")[1] for name in ours if name != "fedsea_mq"} == allowed
    assert "opentelemetry" not in loaded_by("import broker.__main__, nodes.trunk, nodes.client")


def test_rounds_and_aggregation_hold_no_socket_and_no_clock_and_rounds_no_tensor() -> None:
    training = ROOT / "fedsea_mq" / "training"
    rounds = [training / "rounds.py", training / "round_plan.py"]
    core = [*rounds, *(training / "aggregation").glob("*.py")]
    for file in (*core, *(training / "secure_aggregation").glob("*.py")):
        assert not set(imports(file)) & {"zmq", "asyncio", "socket", "time", "random"}, file
    assert not {name for file in core for name in imports(file)} & {"torch", "numpy"}


def test_the_trunks_rules_of_training_hold_no_tensor_socket_or_clock() -> None:
    rules = ("trunk_rounds", "trunk_members", "trunk_work", "attempt", "gathering", "ledger")
    for name in (*rules, "member_frames", "outcomes"):
        found = set(imports(ROOT / "fedsea_mq" / "training" / f"{name}.py"))
        assert not found & {"torch", "numpy", "zmq", "asyncio", "time", "random"}, name


def test_a_plan_is_arithmetic_without_clock_socket_or_process() -> None:
    forbidden = ("zmq", "asyncio", "time", "random", "subprocess", "transformers")
    assert importing("fedsea_mq/planning", *forbidden) == []
