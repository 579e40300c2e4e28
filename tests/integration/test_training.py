"""Clients, broker and trunk over real sockets learn what unsplit peft models learn, noise off.

Tolerances, relative: 1e-4 of each loss, 1e-4 of the norm of each adapter's change or less.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import (
    AttemptOver,
    ConfigError,
    LimitExceeded,
    MalformedFrame,
    MemberReplaced,
    OutOfTurn,
    RunMismatch,
    RunUnknown,
    SessionUnknown,
    StepFailed,
    TrunkDiverged,
)
from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.messages import StatusReport
from fedsea_mq.protocol.training_messages import Forward, Step, Stepped
from fedsea_mq.run_settings import Strategy
from fedsea_mq.settings import Settings
from fedsea_mq.training.batch import Packed
from fedsea_mq.training.load import load_grouped_trunk
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.transport.status import StatusWatch
from nodes import TrunkNode
from tests.integration.systems import System, running, until
from tests.integration.test_generation import oracle
from tests.integration.training_parties import Coordinator, SplitClient, Took
from tests.integration.unsplit_strategies import (
    Batches,
    Client,
    Trunk,
    average,
    step_alone,
    step_together,
)
from tests.unit.model.split import unsplit
from tests.unit.training.unsplit import samples

NAMES = ("ann", "bob", "cy")
STRATEGIES = list(Strategy)
STEPS = 2
TOLERANCE = 1e-4


def data(member: int, number: int, steps: int = STEPS) -> list[Batches]:
    """The steps of a member in a round: of two batches, the second of a size of its own."""
    seeds = [1000 * member + 100 * number + 10 * step for step in range(steps)]
    return [[samples(2, seed), samples(1 + member % 2, seed + 1)] for seed in seeds]


@dataclass
class Run:
    """A system that trains, its parties, and the adapters that they began with."""

    system: System
    coordinator: Coordinator
    clients: list[SplitClient]
    trunk: dict[str, torch.Tensor]
    ends: list[dict[str, torch.Tensor]]

    @property
    def settings(self) -> Settings:
        return self.system.settings

    def unsplit(self, model: Path) -> list[Client]:
        return [Client(model, self.settings, ends) for ends in self.ends]

    def fresh_trunk(self) -> Trunk:
        return Trunk(self.trunk, self.settings)

    def saved(self) -> dict[str, torch.Tensor]:
        """The trunk's adapter on disk."""
        return AdapterFolder.open(folder(self.settings) / "adapter").read()


def folder(settings: Settings) -> Path:
    assert settings.training.run is not None
    return settings.training.out / settings.training.run / "trunk"


def ends_of(client: SplitClient) -> dict[str, torch.Tensor]:
    return {**client.head.adapter.tensors(), **client.tail.adapter.tensors()}


@asynccontextmanager
async def training(
    model: Path, out: Path, strategy: Strategy, *overrides: str, members: int = 3, copies: int = 1
) -> AsyncIterator[Run]:
    said = [
        "training.run=silos",
        f"training.out={out}",
        f"training.strategy={strategy}",
        "training.learning_rate=1e-3",
        "training.max_norm=0.5",
        "client.wire_dtype=fp32",
    ]
    async with running(model, *said, *overrides) as system, AsyncExitStack() as stack:
        settings = system.settings
        enter = stack.enter_async_context
        coordinator = await enter(Coordinator(settings, copies))
        clients = [await enter(SplitClient(settings, name, copies)) for name in NAMES[:members]]
        own = TrainingSettings.of(settings, settings.training.seed, settings.training.max_positions)
        fresh = load_grouped_trunk(clients[0].checkpoint, clients[0].cut, own)
        fresh.add("")
        adapter = fresh.adapters[""].tensors()
        yield Run(system, coordinator, clients, adapter, [ends_of(one) for one in clients])


async def train_round(
    run: Run, number: int, clients: Sequence[SplitClient], attempt: bytes | None = None
) -> list[list[float]]:
    names = [str(client.member) for client in clients]
    attempt = await run.coordinator.begin(number, STEPS, names, attempt)
    steps = [
        client.train(attempt, data(NAMES.index(n), number))
        for n, client in zip(names, clients, strict=True)
    ]
    losses = await asyncio.gather(*steps)
    await run.coordinator.end(number, attempt, names)
    return list(losses)


def unsplit_rounds(
    strategy: Strategy, clients: list[Client], fresh: Trunk, rounds: int
) -> tuple[list[list[list[float]]], list[Trunk]]:
    """The losses of each round by client and step, and the trunks: one, or one a client."""
    apart = strategy is Strategy.HIERARCHICAL
    count = len(clients) if apart else 1
    trunks = [fresh, *(copy_of(fresh, clients) for _ in range(count - 1))]
    losses = []
    for number in range(rounds):
        batches = [data(member, number) for member in range(len(clients))]
        if strategy is Strategy.CLIENT_BATCH:
            steps = [
                step_together(clients, trunks[0], [own[step] for own in batches])
                for step in range(STEPS)
            ]
            losses.append([list(own) for own in zip(*steps, strict=True)])
        else:
            losses.append(
                [
                    [step_alone(client, trunks[n if apart else 0], step) for step in batches[n]]
                    for n, client in enumerate(clients)
                ]
            )
        if apart:
            average(trunks)
    return losses, trunks


def copy_of(fresh: Trunk, clients: list[Client]) -> Trunk:
    return Trunk(fresh.adapter, clients[0].settings)


def check_close(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = TOLERANCE
) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        expected = theirs[name].detach()
        assert float((tensor - expected).norm() / expected.norm()) <= tolerance, name


def check_run(run: Run, clients: list[Client], trunk: Trunk) -> None:
    """Adapters of trunk and ends are the unsplit models', and moved."""
    saved = run.saved()
    check_close(saved, trunk.adapter)
    assert all(
        float((saved[name] - before).abs().max()) > 1e-3 for name, before in run.trunk.items()
    )
    for client, theirs in zip(run.clients, clients, strict=True):
        check_close(ends_of(client), theirs.ends)


@pytest.mark.parametrize("copies", [1, 2], ids=["once", "every frame twice"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
async def test_each_strategy_learns_what_its_unsplit_definition_learns(
    tiny_llama: Path, tmp_path: Path, strategy: Strategy, copies: int
) -> None:
    # Given three clients with data and adapters of their own.
    async with training(tiny_llama, tmp_path, strategy, copies=copies) as run:
        # When they train for two rounds.
        ours = [await train_round(run, number, run.clients) for number in range(2)]
        # Then losses and adapters are those of unsplit models.
        clients = run.unsplit(tiny_llama)
        theirs, trunks = unsplit_rounds(strategy, clients, run.fresh_trunk(), 2)
        assert torch.tensor(ours).flatten().tolist() == pytest.approx(
            torch.tensor(theirs).flatten().tolist(), rel=TOLERANCE
        )
        check_run(run, clients, trunks[0])


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
async def test_an_attempt_that_is_repeated_computes_the_very_same(
    tiny_llama: Path, tmp_path: Path, strategy: Strategy
) -> None:
    # Given dropout at the trunk, one round that counted, and one that was broken off.
    overrides = ("lora.dropout=0.3", "lora.parts=[trunk]", "training.accumulate=2")
    async with training(tiny_llama, tmp_path, strategy, *overrides, members=2) as run:
        await train_round(run, 0, run.clients)
        names = NAMES[:2]
        broken = await run.coordinator.begin(1, STEPS, names)
        first = asyncio.gather(
            *(one.step(broken, 0, data(n, 1)[0]) for n, one in enumerate(run.clients)),
            return_exceptions=True,
        )
        if strategy is Strategy.SEQUENTIAL:
            # The second client's batches wait for its turn, which does not come.
            await asyncio.wait([first], timeout=0.5)
        else:
            await first
        # When it begins again, twice, from what was saved.
        losses, adapters = [], []
        for _ in range(2):
            losses.append(await train_round(run, 1, run.clients))
            adapters.append(run.saved())
        # Then both attempts are the same in each bit.
        assert losses[0] == losses[1]
        assert all(torch.equal(t, adapters[1][name]) for name, t in adapters[0].items())
        with pytest.raises(AttemptOver):
            await run.clients[0].step(broken, 0, data(0, 1)[0])
        await asyncio.wait([first])


async def test_a_trunk_that_was_restarted_goes_on_from_what_it_saved(
    tiny_llama: Path, tmp_path: Path
) -> None:
    strategy = Strategy.HIERARCHICAL
    async with training(tiny_llama, tmp_path / "whole", strategy, members=2) as run:
        expected = [await train_round(run, number, run.clients) for number in range(3)]
        adapter = run.saved()
        # Two states are kept: before the next round, and before the last.
        kept = sorted(path.name for path in folder(run.settings).iterdir())
        assert kept == ["adapter", "state-2", "state-3"]
        with pytest.raises(StepFailed):
            await run.coordinator.begin(1, STEPS, NAMES[:2])
    async with training(tiny_llama, tmp_path / "stopped", strategy, members=2) as run:
        ours = [await train_round(run, 0, run.clients)]
        heads = [(one.head, one.tail) for one in run.clients]
    async with training(tiny_llama, tmp_path / "stopped", strategy, members=2) as run:
        for client, (head, tail) in zip(run.clients, heads, strict=True):
            client.head, client.tail = head, tail
        ours += [await train_round(run, number, run.clients) for number in range(1, 3)]
        assert ours == expected
        assert all(torch.equal(t, adapter[name]) for name, t in run.saved().items())


async def test_sessions_are_served_with_the_same_tokens_while_others_train(
    tiny_llama: Path, tmp_path: Path
) -> None:
    prompts = [list(range(7, 24)), [3, 1, 4, 1, 5, 9, 2, 6] * 5, [5]]
    wanted = [oracle(unsplit(tiny_llama), prompt, 24) for prompt in prompts]
    greedy = SamplingSettings(max_new_tokens=24, ignore_eos=True)
    async with training(tiny_llama, tmp_path, Strategy.HIERARCHICAL) as run:
        # Given a run that trains until it is told to stop.
        stop = asyncio.Event()

        async def rounds() -> int:
            number = 0
            while not stop.is_set():
                await train_round(run, number, run.clients)
                number += 1
            return number

        beside = asyncio.create_task(rounds())
        await until((folder(run.settings) / "state-1").exists)
        # When sessions generate meanwhile, then the base model's tokens come.
        for _ in range(3):
            asked = [run.system.client.generate(prompt, greedy).complete() for prompt in prompts]
            answers = await asyncio.gather(*asked)
            assert [answer.tokens for answer in answers] == wanted
        assert not beside.done()
        stop.set()
        assert await beside >= 1


IMPATIENT = ("training.patience_s=0.5", "trunk.lease_s=20")


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
async def test_others_go_on_when_a_member_dies_in_the_middle_of_a_step(
    tiny_llama: Path, tmp_path: Path, strategy: Strategy
) -> None:
    async with training(tiny_llama, tmp_path, strategy, *IMPATIENT) as run:
        ann, bob, cy = run.clients
        attempt = await run.coordinator.begin(0, STEPS, NAMES)
        batches = [data(member, 0) for member in range(3)]

        async def bob_dies() -> list[float]:
            first = await bob.step(attempt, 0, batches[1][0])
            await first.stepped
            packed = Packed.of(batches[1][1][0])
            await bob.forward(attempt, 1, 0, packed)
            await bob.__aexit__()
            return [first.loss]

        # When one of them dies between an answer and its gradient.
        losses = await asyncio.gather(
            ann.train(attempt, batches[0]), bob_dies(), cy.train(attempt, batches[2])
        )
        await run.coordinator.end(0, attempt, ["ann", "cy"])
        # Then the others learn what they learn without it from there on.
        clients = run.unsplit(tiny_llama)
        theirs, trunk = without_bob(strategy, run, clients, batches)
        assert [one for own in losses for one in own] == pytest.approx(theirs, rel=TOLERANCE)
        check_close(run.saved(), trunk.adapter)
        for ours, other in ((ann, clients[0]), (cy, clients[2])):
            check_close(ends_of(ours), other.ends)


def without_bob(
    strategy: Strategy, run: Run, clients: list[Client], batches: list[list[Batches]]
) -> tuple[list[float], Trunk]:
    """Bob's second step does not happen, whose first batch was in a pass with the others'."""
    trunk = run.fresh_trunk()
    ann, bob, cy = clients
    if strategy is Strategy.CLIENT_BATCH:
        first = step_together(clients, trunk, [own[0] for own in batches])
        second = step_together([ann, cy], trunk, [batches[0][1], batches[2][1]])
        return [first[0], second[0], first[1], first[2], second[1]], trunk
    if strategy is Strategy.SEQUENTIAL:
        losses = [step_alone(ann, trunk, step) for step in batches[0]]
        losses += [step_alone(bob, trunk, batches[1][0])]
        return losses + [step_alone(cy, trunk, step) for step in batches[2]], trunk
    own = [trunk, run.fresh_trunk(), run.fresh_trunk()]
    losses = [step_alone(ann, own[0], step) for step in batches[0]]
    losses += [step_alone(bob, own[1], batches[1][0])]
    losses += [step_alone(cy, own[2], step) for step in batches[2]]
    average([own[0], own[2]])
    return losses, own[0]


async def test_a_pass_of_evaluation_changes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    async with training(tiny_llama, tmp_path, Strategy.CLIENT_BATCH, members=2) as run:
        attempt = await run.coordinator.begin(0, STEPS, NAMES[:2])
        ann = run.clients[0]
        packed = Packed.of(samples(3, 7))
        before = await ann.forward(attempt, 9, 9, packed, trains=False)
        again = await ann.forward(attempt, 9, 9, packed, trains=False)
        assert torch.equal(before, again)
        # B is still zero: it is the base model's trunk.
        steps = [one.train(attempt, data(n, 0)) for n, one in enumerate(run.clients)]
        await asyncio.gather(*steps)
        learned = await ann.forward(attempt, 0, 0, packed, trains=False)
        assert not torch.allclose(before, learned, rtol=1e-3)


async def test_a_trunk_whose_gradients_grow_beyond_all_bounds_says_so(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with training(tiny_llama, tmp_path, Strategy.HIERARCHICAL, members=1) as run:
        (ann,) = run.clients
        attempt = await run.coordinator.begin(0, 1, NAMES[:1])
        packed = Packed.of(samples(2, 3))
        outputs = await ann.forward(attempt, 0, 0, packed)
        with pytest.raises(TrunkDiverged):
            await ann.backward(attempt, 0, 0, torch.full_like(outputs, 1e12))


async def test_frames_that_do_not_fit_are_refused_and_right_ones_still_taken(
    tiny_llama: Path, tmp_path: Path
) -> None:
    few = "training.max_positions=120"
    async with training(tiny_llama, tmp_path, Strategy.CLIENT_BATCH, few, members=2) as run:
        ann, bob = run.clients
        attempt = await run.coordinator.begin(0, 1, NAMES[:2])
        packed = Packed.of(samples(2, 3))
        rows = packed.batch.total

        async def asks(payload: list[bytes], lengths: list[int], step: int = 0) -> None:
            await ann.ask(Kind.FORWARD, Forward(attempt, step, 0, True, lengths), payload)

        size = rows * ann.spec.hidden * 4
        with pytest.raises(MalformedFrame):
            await asks([bytes(size - 4)], list(packed.batch.lengths))
        with pytest.raises(LimitExceeded):
            await asks([bytes(61 * ann.spec.hidden * 4)], [61])
        with pytest.raises(OutOfTurn):
            await asks([bytes(size)], list(packed.batch.lengths), step=1)
        with pytest.raises(OutOfTurn):
            await ann.ask(Kind.STEP, Step(attempt, 0, 0.0))
        with pytest.raises(AttemptOver):
            await run.coordinator.end(0, bytes(16), NAMES[:2])
        # States that are no numbers are told to whom they are from, once all are there.
        other = asyncio.create_task(bob.step(attempt, 0, data(1, 0)[0][:1]))
        with pytest.raises(MalformedFrame):
            await asks([b"\xff" * size], list(packed.batch.lengths))
        took = await asyncio.gather(ann.step(attempt, 0, data(0, 0)[0][:1]), other)
        assert all(isinstance(one, Took) for one in took)
        for one in took:
            assert (await one.stepped).body(Stepped).steps == 1
        await run.coordinator.end(0, attempt, NAMES[:2])


async def test_who_enlists_must_be_of_the_run_and_takes_the_place_of_what_it_was(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with training(tiny_llama, tmp_path, Strategy.HIERARCHICAL, members=2) as run:
        settings = run.settings
        for other, error in (
            (settings.replace(training={"run": "others"}), RunUnknown),
            (settings.replace(training={"seed": 9}), RunMismatch),
            (settings.replace(lora={"rank": 9}), RunMismatch),
        ):
            with pytest.raises(error):
                async with Coordinator(other):
                    pass
        attempt = await run.coordinator.begin(0, STEPS, NAMES[:2])
        waits = asyncio.create_task(run.clients[0].step(attempt, 0, data(0, 0)[0]))
        await asyncio.wait([waits])
        # A client that comes again has a new session; the attempt goes on without it.
        async with SplitClient(settings, NAMES[0]) as again:
            with pytest.raises(AttemptOver):
                await again.step(attempt, 0, data(0, 0)[0])
            with pytest.raises(SessionUnknown):
                await run.clients[0].step(attempt, 1, data(0, 0)[1])
            # Should the one before still be there, it is told why.
            assert [type(one) for one in run.clients[0].closed] == [MemberReplaced]
            losses = await train_round(run, 0, [again, run.clients[1]])
            assert len(losses) == 2
            # Status tells what the node does.
            (node,) = (await status(run)).nodes
            assert (node.role, node.run) == (Role.TRUNK, "silos")
            assert node.load.sessions >= 3


async def status(run: Run) -> StatusReport:
    async with StatusWatch(run.settings.broker) as watch:
        return await watch.report()


async def test_a_node_does_not_train_in_numbers_that_it_cannot_serve_in(tiny_llama: Path) -> None:
    for override in ("model.dtype=bf16", "model.weights=int8"):
        said = [f"model.path={tiny_llama}", "training.run=silos", override]
        with pytest.raises(ConfigError):
            async with TrunkNode(Settings.load(None, said)):
                pass
