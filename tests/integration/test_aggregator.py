"""The aggregator node over real sockets and a real broker: against the mean worked out by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker import Broker
from fedsea_mq.cli.processes import Child
from fedsea_mq.errors import CheckpointError, ConfigError, StepFailed, UpdateRefused
from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.training_messages import BeginRound, Duty, EndRound
from fedsea_mq.settings import Settings
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.aggregation import reports as r
from nodes import AggregatorNode
from nodes.aggregator.plan import RunPlan
from tests.integration.aggregator_parties import ScriptedMember, ScriptedTrunk, trained
from tests.integration.systems import EXACT

NAMES = ("ada", "bob", "cyd")
WEIGHTS = {"ada": 10, "bob": 30, "cyd": 5}
RUN = ["training.run=silos", "training.clients=3", "federation.rounds=3", "log.level=warning"]


def run_settings(model: Path, out: Path, *overrides: str) -> Settings:
    given = [f"model.path={model}", f"training.out={out}", *RUN, *overrides]
    return Settings.load(None, [*EXACT, *given])


@dataclass
class Parties:
    """A broker, a scripted trunk and members; `settings` are for all of them."""

    settings: Settings
    trunk: ScriptedTrunk
    layout: AdapterLayout
    initial: np.ndarray
    events: list[r.RunEvent] = field(default_factory=list)

    def members(self, names: Sequence[str] = NAMES, **fields: Any) -> list[ScriptedMember]:
        return [
            ScriptedMember(self.settings, self.layout, name, WEIGHTS[name], **fields)
            for name in names
        ]

    async def play(self, members: Sequence[ScriptedMember]) -> bool:
        """Aggregator and members, to the end of the run; whether it finished."""
        async with AggregatorNode(self.settings, self.events.append) as node:
            await node.registered()
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                for member in members:
                    group.create_task(member.run())
                return await node.ended()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def expected(self, rounds: int = 3, names: Sequence[str] = NAMES) -> np.ndarray:
        """The shared adapters at the end, by hand."""
        shared = self.initial
        for number in range(rounds):
            updates = np.array([trained(name, number, shared) for name in names], np.float64)
            mean = np.average(updates, axis=0, weights=[WEIGHTS[name] for name in names])
            shared = (shared + mean).astype(np.float32)
        return shared


@asynccontextmanager
async def parties(model: Path, out: Path, *overrides: str) -> AsyncIterator[Parties]:
    settings = run_settings(model, out, *overrides)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(settings.broker))
        settings = settings.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        trunk = await stack.enter_async_context(ScriptedTrunk(settings).running())
        plan = RunPlan.of(settings)
        initial = plan.layout.flatten(plan.begin().shared.adapters)
        yield Parties(settings, trunk, plan.layout, initial)


def written(out: Path, layout: AdapterLayout) -> np.ndarray:
    """What lies in the folders of head and tail, in the order of the layout."""
    tensors = {}
    for part in ("head", "tail"):
        tensors |= AdapterFolder.open(out / "silos" / part).read()
    return layout.flatten(tensors)


def check_trunk(told: Sequence[BeginRound | EndRound], rounds: int) -> None:
    """Each round is begun, then ended under the same attempt, by all members in order."""
    begins, ends = told[::2], told[1::2]
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        assert isinstance(begin, BeginRound)
        assert isinstance(end, EndRound)
        assert (begin.round, begin.members) == (number, list(NAMES))
        assert (end.round, end.attempt, end.counted) == (number, begin.attempt, list(NAMES))
    assert len(begins) == rounds


async def test_rounds_are_the_weighted_means_of_all_updates(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with parties(tiny_llama, tmp_path) as run:
        members = run.members()
        assert await run.play(members)
    check_trunk(run.trunk.told, rounds=3)
    for member in members:
        assert member.rounds == [0, 1, 2]
        assert member.final is not None
        np.testing.assert_allclose(member.final, run.expected(), rtol=0, atol=1e-7)
    np.testing.assert_array_equal(written(tmp_path, run.layout), members[0].final)
    states = sorted(folder.name for folder in (tmp_path / "silos" / "aggregator").iterdir())
    assert states == ["state-2", "state-3"]
    assert [event.counted for event in run.of(r.RoundDone)] == [NAMES] * 3
    assert run.of(r.RunFinished) == [r.RunFinished(3)]


async def test_secure_rounds_have_the_same_mean_without_a_member_that_falls_silent(
    tiny_llama: Path, tmp_path: Path
) -> None:
    secure = [
        "federation.secure=true",
        "federation.rounds=1",
        "federation.aggregation_s=5",
        "client.give_up_s=2",
    ]
    async with parties(tiny_llama, tmp_path, *secure, "federation.min_updates=2") as run:
        silent = ScriptedMember(run.settings, run.layout, "cyd", 5, falls_silent=True)
        silence = asyncio.create_task(silent.run())
        members = run.members(("ada", "bob"))
        finishing = asyncio.create_task(run.play(members))
        await asyncio.wait([finishing, silence], return_when=asyncio.FIRST_COMPLETED)
        silence.cancel()
        await asyncio.wait([silence])
        assert await finishing
    assert silent.rounds == [0]
    assert silent.duty is Duty.MASK
    expected = run.expected(1, ("ada", "bob"))
    assert members[0].final is not None
    np.testing.assert_allclose(members[0].final, expected, rtol=0, atol=1e-7)
    assert [event.counted for event in run.of(r.RoundDone)] == [("ada", "bob")]
    assert all(event.norm is None for event in run.of(r.UpdateCounted))


async def test_a_killed_aggregator_goes_on_where_it_stood(tiny_llama: Path, tmp_path: Path) -> None:
    async with parties(tiny_llama, tmp_path) as run, asyncio.TaskGroup() as group:
        members = run.members()
        first = await Child.start("nodes.aggregator", "first", run.settings, tmp_path)
        assert (await first.wait_ready())["ready"] == "aggregator"
        tasks = [group.create_task(member.run()) for member in members]
        async for line in first.lines():
            if line["event"] == "update_counted" and line["round"] == 1:
                break
        first.process.kill()
        await first.process.wait()
        again = run.settings.replace(training={"resume": True})
        second = await Child.start("nodes.aggregator", "second", again, tmp_path)
        await second.wait_ready()
        lines = [line async for line in second.lines()]
        assert await second.process.wait() == 0, second.log_tail()
        async with asyncio.timeout(20):
            await asyncio.wait(tasks)
    begun = [line["round"] for line in lines if line["event"] == "round_begun"]
    assert begun == [1, 2]
    assert [line["rounds"] for line in lines if line["event"] == "run_finished"] == [3]
    for member in members:
        assert member.final is not None
        np.testing.assert_allclose(member.final, run.expected(), rtol=0, atol=1e-7)


async def test_a_trunk_that_dies_in_a_round_makes_it_begin_again(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with parties(tiny_llama, tmp_path) as run:
        loop = asyncio.get_running_loop()
        members = run.members()
        dying = asyncio.Event()

        def die(name: str, number: int, adapters: np.ndarray) -> np.ndarray:
            if name == "cyd" and number == 1 and not dying.is_set():
                dying.set()
                loop.call_soon(run.trunk.membership.leave)
            return trained(name, number, adapters)

        members[2].train = die
        playing = asyncio.create_task(run.play(members))
        await dying.wait()
        async with ScriptedTrunk(run.settings).running() as trunk:
            assert await playing
    assert members[0].final is not None
    np.testing.assert_allclose(members[0].final, run.expected(), rtol=0, atol=1e-7)
    assert isinstance(trunk.told[0], BeginRound)
    ended = [told.round for told in (*run.trunk.told, *trunk.told) if isinstance(told, EndRound)]
    assert sorted(set(ended)) == [0, 1, 2]
    assert ended[-1] == 2


async def test_what_the_trunk_cannot_do_is_another_attempt(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with parties(tiny_llama, tmp_path) as run:
        run.trunk.refuses[Kind.END_ROUND] = StepFailed("no state")
        members = run.members()
        assert await run.play(members)
    assert [event.reason for event in run.of(r.RoundRepeated)] == ["the trunk: StepFailed"]
    assert members[0].rounds == [0, 0, 1, 2]
    assert members[0].final is not None
    np.testing.assert_allclose(members[0].final, run.expected(), rtol=0, atol=1e-7)


async def test_a_poisoned_update_is_clipped_or_refused_and_reported(
    tiny_llama: Path, tmp_path: Path
) -> None:
    def huge(name: str, number: int, adapters: np.ndarray) -> np.ndarray:
        return trained(name, number, adapters) * np.float32(1e9)

    def broken(name: str, number: int, adapters: np.ndarray) -> np.ndarray:
        return np.full(len(adapters), np.nan, np.float32)

    one_round = ["federation.rounds=1", "federation.min_updates=2"]
    async with parties(tiny_llama, tmp_path, *one_round) as run:
        ada, bob = run.members(("ada", "bob"))
        (cyd,) = run.members(("cyd",), train=broken)
        bob.train = huge
        assert await run.play([ada, bob, cyd])
    clipped = {event.member: event.clipped for event in run.of(r.UpdateCounted)}
    assert clipped == {"ada": False, "bob": True}
    assert [event.member for event in run.of(r.UpdateTurnedAway)] == ["cyd"]
    assert [type(error) for error in cyd.errors] == [UpdateRefused]
    assert [event.missing for event in run.of(r.RoundClosed)] == [("cyd",)]
    assert ada.final is not None
    # Bob's share of the mean, of an update of the agreed norm, and a little of Ada's.
    moved = np.linalg.norm(ada.final - run.initial)
    assert moved == pytest.approx(100.0 * 30 / 40, rel=0.02)


async def test_where_only_the_trunk_has_an_adapter_rounds_go_without_vectors(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with parties(tiny_llama, tmp_path, "lora.parts=[trunk]") as run:
        members = run.members()
        assert await run.play(members)
    check_trunk(run.trunk.told, rounds=3)
    assert not run.layout.elements
    assert [member.final.tolist() for member in members if member.final is not None] == [[]] * 3
    assert not (tmp_path / "silos" / "head").exists()


async def test_personal_adapters_stay_out_and_are_written_as_zero(
    tiny_llama: Path, tmp_path: Path
) -> None:
    personal = 'federation.personal=["model.layers.3.*q_proj*"]'
    async with parties(tiny_llama, tmp_path, personal, "federation.rounds=1") as run:
        members = run.members()
        assert await run.play(members)
    tail = AdapterFolder.open(tmp_path / "silos" / "tail").read()
    kept = {name for name in tail if "q_proj" in name}
    assert len(kept) == 2
    assert not any(tail[name].any() for name in kept)
    assert not kept & {name for name, _ in run.layout.shapes}
    head = AdapterFolder.open(tmp_path / "silos" / "head").read()
    shared = {name: tensor for name, tensor in (head | tail).items() if name not in kept}
    np.testing.assert_array_equal(run.layout.flatten(shared), members[0].final)


class TestWhatCannotBegin:
    async def test_a_run_that_is_there_already(self, tiny_llama: Path, tmp_path: Path) -> None:
        async with parties(tiny_llama, tmp_path, "federation.rounds=1") as run:
            assert await run.play(run.members())
        with pytest.raises(CheckpointError, match=r"training\.resume"):
            await entered(run.settings)
        other = run.settings.replace(training={"resume": True}, federation={"rounds": 2})
        with pytest.raises(CheckpointError, match="other settings"):
            await entered(other)

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("training.run=null", "training.run"),
            ("federation.personal=[nothing]", "names no adapter"),
            ("federation.min_updates=4", "min_updates 4"),
            ("lora.rank=1024", "max_part_mb"),
        ],
    )
    async def test_a_run_that_no_round_could_follow(
        self, tiny_llama: Path, tmp_path: Path, override: str, said: str
    ) -> None:
        small = run_settings(tiny_llama, tmp_path, "broker.max_part_mb=1", override)
        with pytest.raises(ConfigError, match=said):
            await entered(small)

    @pytest.mark.parametrize(
        ("override", "said"),
        [("lora.parts=[trunk]", "no adapter"), ("federation.max_update_norm=1e5", "65536")],
    )
    async def test_a_secure_run_without_a_range_or_adapters(
        self, tiny_llama: Path, tmp_path: Path, override: str, said: str
    ) -> None:
        settings = run_settings(tiny_llama, tmp_path, "federation.secure=true", override)
        with pytest.raises(ConfigError, match=said):
            await entered(settings)


async def entered(settings: Settings) -> None:
    async with AggregatorNode(settings):
        pass
