"""A system on a Ray cluster: machines are lost, load comes and goes, and no token is wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsea_mq.model.sampling import SamplingSettings
from nodes import ClientNode
from tests.chaos.ray_cluster import (
    ROOT,
    Machines,
    keyed_settings,
    machines,
    still_running,
    up_on_ray,
)
from tests.integration.train_command import TrainCommand, short_run

pytestmark = pytest.mark.slow

PROMPT = [7, 3, 11, 19, 2, 5]
GREEDY = SamplingSettings(max_new_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines(workers=3) as made:
        yield made


class Asker:
    """Someone who asks the same again and again; `reached` once `at` tokens of an answer came."""

    def __init__(self, client: ClientNode, number: int, at: int = 20) -> None:
        self._client = client
        self._prompt = [*PROMPT, number]
        self._at = at
        self.node = ""
        self.reached = asyncio.Event()

    async def answer(self) -> tuple[list[int], int]:
        """All tokens, and how often the session moved."""
        generation = self._client.generate(self._prompt, GREEDY)
        tokens: list[int] = []
        async for token in generation:
            tokens.append(token.id)
            if len(tokens) == self._at:
                self.node = generation.stats.node
                self.reached.set()
        return tokens, generation.stats.recoveries


@pytest.mark.parametrize("stages", [1, 2])
async def test_a_lost_machine_costs_no_token_and_its_node_is_replaced(
    cluster: Machines, tiny_llama: Path, tmp_path: Path, stages: int
) -> None:
    terms = ["ray.min_nodes=2", f"trunk.stages={stages}"]  # two of each stage
    settings = keyed_settings(tmp_path, f"model.path={tiny_llama}", *terms)
    async with (
        up_on_ray(cluster, settings, tmp_path) as up,
        ClientNode(up.settings) as client,
    ):
        await up.until(lambda report: len(report.nodes) == 2 * stages)
        askers = [Asker(client, number) for number in range(6)]
        undisturbed = [(await asker.answer())[0] for asker in askers]

        # When the machine of the first asker's node loses power, with all that runs there.
        for asker in askers:
            asker.reached.clear()
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(asker.answer()) for asker in askers]
            await asyncio.gather(*(asker.reached.wait() for asker in askers))
            lost, lost_at = askers[0].node, time.monotonic()
            await asyncio.to_thread(cluster.cut_power_of, cluster.holder_of(lost))
        answered_s = time.monotonic() - lost_at

        # Then all tokens are the same, and there are as many nodes again.
        moved = sum(answer.result()[1] for answer in answers)
        report = await up.until(
            lambda report: (
                len(report.nodes) == 2 * stages and all(n.name != lost for n in report.nodes)
            )
        )
        back_s = time.monotonic() - lost_at
    assert [answer.result()[0] for answer in answers] == undisturbed
    assert moved >= 1
    sys.stdout.write(
        f"\n{lost} of {stages} stages lost with its machine: {moved} of {len(askers)} sessions "
        f"moved, no token differs; all answered after {answered_s:.1f} s, "
        f"{max(node.name for node in report.nodes)} in its place after {back_s:.1f} s\n"
    )
    cluster.add()


class Load:
    """Askers who come and go; none may meet an error, or a token that differs."""

    def __init__(self, client: ClientNode, expected: list[list[int]]) -> None:
        self._client = client
        self._expected = expected
        self._staying = 0
        self.answers = 0
        self.moved = 0

    def scale(self, askers: int, group: asyncio.TaskGroup) -> None:
        for number in range(self._staying, askers):
            group.create_task(self._ask(number))
        self._staying = askers

    async def _ask(self, number: int) -> None:
        while number < self._staying:
            tokens, moved = await Asker(self._client, number).answer()
            assert tokens == self._expected[number]
            self.answers += 1
            self.moved += moved


async def test_nodes_follow_the_load_up_and_down_without_an_error(
    cluster: Machines, tiny_llama: Path, tmp_path: Path
) -> None:
    terms = ["ray.max_nodes=3", "ray.node_sessions=4", "ray.settle_s=5", "trunk.drain_s=2"]
    settings = keyed_settings(tmp_path, f"model.path={tiny_llama}", *terms)
    async with (
        up_on_ray(cluster, settings, tmp_path) as up,
        ClientNode(up.settings) as client,
    ):
        expected = [(await Asker(client, number).answer())[0] for number in range(10)]
        load, took_s = Load(client, expected), []
        async with asyncio.TaskGroup() as group:
            for askers, nodes in ((2, 1), (10, 3), (2, 1)):
                begun = time.monotonic()
                load.scale(askers, group)
                await up.until(lambda report, nodes=nodes: len(report.nodes) == nodes)
                took_s.append(time.monotonic() - begun)
            load.scale(0, group)
        errors = (await up.watch.report()).errors
    assert load.answers >= 12
    sys.stdout.write(
        f"\n1 to 3 nodes in {took_s[1]:.1f} s, to 1 again in {took_s[2]:.1f} s; {load.answers} "
        f"answers of {GREEDY.max_new_tokens} tokens, none wrong; {load.moved} sessions moved as "
        f"nodes left; the broker counts {errors} errors\n"
    )


async def test_a_broker_that_is_killed_is_started_again_at_its_ports(
    cluster: Machines, tiny_llama: Path, tmp_path: Path
) -> None:
    settings = keyed_settings(tmp_path, f"model.path={tiny_llama}")
    async with (
        up_on_ray(cluster, settings, tmp_path) as up,
        ClientNode(up.settings) as client,
    ):
        asker = Asker(client, 0)
        undisturbed, _ = await asker.answer()
        asker.reached.clear()
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(asker.answer())
            await asker.reached.wait()
            cluster.process_of("broker").kill()
        assert answer.result()[0] == undisturbed


async def test_where_there_is_no_place_the_command_says_so(
    cluster: Machines, tmp_path: Path
) -> None:
    config = tmp_path / "large.yaml"
    keyed_settings(tmp_path, "ray.cpus=64", "ray.place_s=3").write(config)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fedsea_mq.cli", "up", "--config", str(config)),
        *("--on", "ray", "--address", cluster.address),
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"NoPlace: trunk-0: Ray had no place with 64 CPUs and 0 GPUs within 3 s" in said


async def test_a_command_that_is_killed_leaves_nothing(cluster: Machines, tmp_path: Path) -> None:
    async with up_on_ray(cluster, keyed_settings(tmp_path), tmp_path, status=-signal.SIGKILL) as up:
        await up.until(lambda report: len(report.nodes) == 1)
        doomed = cluster.ours
        up.process.kill()
        assert len(doomed) == 2
        assert not await still_running(doomed)


async def test_load_comes_from_several_machines(cluster: Machines, tmp_path: Path) -> None:
    config = tmp_path / "load.yaml"
    keyed_settings(tmp_path, "trunk.nodes=2").write(config)
    load = ("--clients", "8", "--processes", "2", "--duration", "4", "--new", "8", "--json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fedsea_mq.cli", "loadtest", "--config", str(config), *load),
        *("--on", "ray", "--address", cluster.address),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    report: dict[str, Any] = json.loads(out)
    assert report["requests"]["done"] > 0
    assert not report["requests"]["errors"]
    assert report["jain"] > 0.5  # both processes' clients are in it
    done = report["requests"]["done"]
    sys.stdout.write(f"\n{done} requests from two processes on Ray, no error\n")


async def test_a_training_run_on_ray_learns_as_on_this_machine(
    cluster: Machines, tmp_path: Path
) -> None:
    reports = []
    for name, options in (("here", []), ("ray", ["--on", "ray", "--address", cluster.address])):
        folder = tmp_path / name
        (folder / "keys").mkdir(parents=True)
        settings = keyed_settings(folder / "keys", *short_run(folder), "training.member=site")
        command = await TrainCommand.start(settings, folder, *options)
        reports.append(await command.report())
    here, on_ray = reports
    assert on_ray["losses"] == {
        member: pytest.approx(losses, abs=1e-5) for member, losses in here["losses"].items()
    }
    assert not on_ray["restarts"]
    said = f"\n{on_ray['samples']} samples on Ray in {on_ray['seconds']:.0f} s, the same losses\n"
    sys.stdout.write(said)
