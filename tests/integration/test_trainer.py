"""The training client over real sockets, against peers that a test scripts; peft is the oracle.

Tolerances, relative: losses and final adapters 1e-4 of each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import (
    Busy,
    MalformedFrame,
    MemberReplaced,
    RunGivenUp,
    RunMismatch,
    RunUnknown,
    TaskDataError,
    TrainingDiverged,
)
from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.training_messages import Backward, Forward
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.data_order import DataOrder
from fedsea_mq.training.settings import TrainingSettings
from nodes.trainer import Examples, TrainingClient
from nodes.trainer.events import (
    AttemptFailed,
    Event,
    Finished,
    Masked,
    RoundDone,
    SessionsLost,
    StepDone,
)
from tests.integration.scripted_run import ScriptedNode, ScriptedRun, scripted_run
from tests.unit.training.split_training import check_close
from tests.unit.training.unsplit import Unsplit, UnsplitTraining, samples

TOLERANCE = 1e-4
DATA = Examples(samples(9, seed=5))
CLIPS = "training.max_norm=0.5"


async def train(
    settings: Settings, member: str = "a", examples: Examples = DATA
) -> tuple[list[Event], dict[str, torch.Tensor]]:
    """A member from its start to the run's end: its events, and its adapters as it left them."""
    async with TrainingClient(settings, member, examples) as trainer:
        events = [event async for event in trainer.run()]
    assert isinstance(events[-1], Finished)
    return events, left(Path(events[-1].folder))


def left(folder: Path) -> dict[str, torch.Tensor]:
    parts = [folder / name for name in ("head", "tail") if (folder / name).exists()]
    return {n: t for part in parts for n, t in AdapterFolder.open(part).read().items()}


def steps(events: Sequence[Event]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


def losses(events: Sequence[Event]) -> list[float]:
    return [event.loss for event in steps(events)]


def trunk_of(run: ScriptedRun, member: str = "a") -> dict[str, torch.Tensor]:
    return run.trunk.trunks[member].adapter.tensors()


def unsplit_training(run: ScriptedRun) -> UnsplitTraining:
    """peft on the whole model, from the adapters that the run begins with."""
    how = TrainingSettings.of(run.settings, 0, 1 << 16)
    whole = Unsplit(Path(run.settings.model.path), how.lora, range(4))
    whole.copy({**run.aggregator.shared, **trunk_of(run)})
    return UnsplitTraining(whole, how.optimizer, run.settings.training.max_norm)


def taken(run: ScriptedRun, number: int, member: str = "a") -> list[Encoded]:
    """The examples of a step, by the data order alone."""
    training = run.settings.training
    size = training.batch_size * training.accumulate
    order = DataOrder(len(DATA.train), training.seed, member)
    return [DATA.train[one] for one in order.take(number * size, size)]


async def test_one_member_learns_as_peft_on_the_unsplit_model(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # Given one member, noise off, an fp32 wire, and a norm that every step exceeds.
    async with scripted_run(tiny_llama, tmp_path, CLIPS) as run:
        unsplit = unsplit_training(run)
        # When both take two rounds of three steps of two batches.
        events, adapters = await train(run.settings)
        theirs = [unsplit.step(taken(run, number)) for number in range(6)]
        ours = {**adapters, **trunk_of(run)}
    # Then losses, gradient norms and adapters are the same.
    assert losses(events) == pytest.approx(theirs, rel=TOLERANCE)
    assert steps(events)[-1].norm == pytest.approx(unsplit.norm, rel=1e-3)
    assert steps(events)[-1].norm > 0.5
    check_close(ours, unsplit.unsplit.adapter(), TOLERANCE)
    # And events tell where it stands.
    assert [(e.round, e.step, e.steps) for e in steps(events)] == [
        (r, s, 3 * r + s + 1) for r in range(2) for s in range(3)
    ]
    rounds = [event for event in events if isinstance(event, RoundDone)]
    assert [event.samples for event in rounds] == [12, 12]
    assert rounds[1].bytes_up > sum(event.bytes_up for event in steps(events)[3:])
    folders = [tmp_path / "run-1" / "members" / "a" / f"state-{n}" for n in range(4)]
    assert [folder.exists() for folder in folders] == [False, True, True, False]


async def test_batches_of_a_step_are_under_way_at_once_and_are_one_large_batch(
    tiny_llama: Path, tmp_path: Path
) -> None:
    overrides = ("training.batch_size=4", "training.accumulate=1", CLIPS)
    async with scripted_run(tiny_llama, tmp_path / "large", *overrides) as run:
        events, large = await train(run.settings)
        large |= trunk_of(run)
    # Given frames of so few positions at the trunk that every step is cut.
    few = ("training.batch_size=1", "training.accumulate=4", CLIPS)
    async with scripted_run(tiny_llama, tmp_path / "micro", *few, max_positions=30) as run:
        micro_events, micro = await train(run.settings)
        micro |= trunk_of(run)
        kinds = [frame.envelope.kind for frame in run.trunk.heard]
    assert losses(micro_events) == pytest.approx(losses(events), rel=TOLERANCE)
    check_close(micro, large, TOLERANCE)
    # The first step's forward frames came before any of its answers was answered.
    forwards = [kind for kind in kinds if kind in (Kind.FORWARD, Kind.BACKWARD)][:2]
    assert forwards == [Kind.FORWARD, Kind.FORWARD]


async def test_a_batch_is_cut_to_what_the_trunk_takes_in_a_frame(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with scripted_run(tiny_llama, tmp_path, max_positions=40) as run:
        await train(run.settings)
        bodies = [f.body(Forward) for f in run.trunk.heard if f.envelope.kind is Kind.FORWARD]
    assert max(sum(body.lengths) for body in bodies) <= 40
    assert max(len(body.lengths) for body in bodies) == 2


async def test_lost_and_duplicated_frames_change_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    async with scripted_run(tiny_llama, tmp_path / "undisturbed", CLIPS) as run:
        events, undisturbed = await train(run.settings)
        undisturbed |= trunk_of(run)
    # Given a network that loses the first of every kind of frame, and doubles all other answers.
    async with scripted_run(tiny_llama, tmp_path / "disturbed", CLIPS) as run:
        lost: set[Kind] = set()

        def loses(frame: Frame) -> bool:
            first = frame.envelope.kind not in lost
            lost.add(frame.envelope.kind)
            return first

        run.trunk.deaf = run.aggregator.deaf = loses
        run.trunk.faults = run.aggregator.faults = lambda reply: 0 if loses(reply) else 2
        disturbed_events, disturbed = await train(run.settings)
        disturbed |= trunk_of(run)
        assert run.aggregator.attempts == 2
    requests = {Kind.ENLIST, Kind.FORWARD, Kind.BACKWARD, Kind.STEP, Kind.ASK, Kind.UPDATE}
    replies = {Kind.OUTPUTS, Kind.GRADIENT, Kind.STEPPED, Kind.TASK, Kind.UPDATED}
    assert requests | replies <= lost
    # Then not a bit is different.
    assert losses(disturbed_events) == losses(events)
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in disturbed.items())


@pytest.mark.parametrize("who", ["trunk", "aggregator"])
async def test_a_lost_session_is_another_attempt_with_the_same_numbers(
    tiny_llama: Path, tmp_path: Path, who: str
) -> None:
    dropout = ("lora.dropout=0.2", "federation.rounds=2")
    async with scripted_run(tiny_llama, tmp_path / "undisturbed", *dropout) as run:
        events, undisturbed = await train(run.settings)
    async with scripted_run(tiny_llama, tmp_path / "disturbed", *dropout) as run:
        seen: list[Event] = []
        async with TrainingClient(run.settings, "a", DATA) as trainer:
            async for event in trainer.run():
                seen.append(event)
                # When the party forgets all sessions in the middle of the second round.
                if len(losses(seen)) == 5 and isinstance(event, StepDone):
                    (run.trunk if who == "trunk" else run.aggregator).forget_sessions()
                    await asyncio.sleep(0)
        disturbed = left(tmp_path / "disturbed" / "run-1" / "members" / "a")
        assert run.aggregator.attempts == 3
    assert any(isinstance(event, SessionsLost) for event in seen)
    again = steps(seen)[-3:]
    assert [event.loss for event in again] == losses(events)[-3:]
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in disturbed.items())


async def test_an_attempt_that_the_trunk_ends_is_reported_and_begun_again(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with scripted_run(tiny_llama, tmp_path) as run:
        seen: list[Event] = []
        async with TrainingClient(run.settings, "a", DATA) as trainer:
            async for event in trainer.run():
                seen.append(event)
                if len(losses(seen)) == 2 and isinstance(event, StepDone):
                    run.trunk.attempt = b"no attempt"
    assert AttemptFailed(0, "AttemptOver") in seen
    assert losses(seen)[:2] == losses(seen)[2:4]
    assert isinstance(seen[-1], Finished)


async def test_a_run_that_went_on_from_an_attempt_that_failed_here_is_over(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with (
        scripted_run(tiny_llama, tmp_path) as run,
        TrainingClient(run.settings, "a", DATA) as trainer,
    ):
        async for event in trainer.run():
            if isinstance(event, StepDone):
                run.trunk.attempt = b"no attempt"
            if isinstance(event, AttemptFailed):
                # When the others have made the last round of it before this member says so.
                run.aggregator.ended, run.aggregator.round = run.aggregator.attempt, 2
    assert isinstance(event, Finished)


async def test_members_take_examples_in_orders_of_their_own(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # Given two members with the same examples.
    async with scripted_run(tiny_llama, tmp_path, members=("a", "b")) as run:
        (of_a, a), (of_b, b) = await asyncio.gather(
            train(run.settings, "a"), train(run.settings, "b")
        )
    # Then they take them in orders of their own, and end with the same adapters.
    assert losses(of_a) != losses(of_b)
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert run.aggregator.weights == [24, 24]


async def test_personal_adapters_stay(tiny_llama: Path, tmp_path: Path) -> None:
    personal = ("federation.personal=['model.layers.3.*']", "federation.proximal=0.1")
    async with scripted_run(tiny_llama, tmp_path, *personal, members=("a", "b")) as run:
        (_, a), (_, b) = await asyncio.gather(train(run.settings, "a"), train(run.settings, "b"))
        shared = run.aggregator.layout.shapes
    assert {name.split(".")[2] for name, _ in shared} == {"0"}
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]) == (".0." in name), name


async def test_the_secure_sum_is_the_plain_one(tiny_llama: Path, tmp_path: Path) -> None:
    members = ("a", "b", "c")
    async with scripted_run(tiny_llama, tmp_path / "plain", members=members) as run:
        await asyncio.gather(*(train(run.settings, member) for member in members))
        plain = run.aggregator.shared
    secure = "federation.secure=true"
    async with scripted_run(tiny_llama, tmp_path / "secure", secure, members=members) as run:
        told = await asyncio.gather(*(train(run.settings, member) for member in members))
        summed = run.aggregator.shared
        assert run.aggregator.weights == [36, 36]
        updates = [f for f in run.aggregator.heard if f.envelope.kind is Kind.UPDATE]
        assert not any(frame.payload for frame in updates)
    assert [event.round for event in told[0][0] if isinstance(event, Masked)] == [0, 1]
    for name, tensor in plain.items():
        torch.testing.assert_close(summed[name], tensor, rtol=0, atol=1e-6)


async def test_bytes_are_those_of_the_states(tiny_llama: Path, tmp_path: Path) -> None:
    # Given samples of 128 tokens, one a step, in fp16.
    long = Examples([Encoded(tuple(range(100)), tuple(range(28)))] * 2)
    overrides = ("training.batch_size=1", "training.accumulate=1", "client.wire_dtype=fp16")
    async with scripted_run(tiny_llama, tmp_path, *overrides, "client.request_timeout_s=5") as run:
        events, _ = await train(run.settings, examples=long)
        floor = 4 * 128 * run.trunk.checkpoint.hidden * 2
    # Then a step costs its four frames of states and gradients, and hardly more.
    # What STEP's answer costs may be counted with the step after.
    mean = sum(event.bytes_up + event.bytes_down for event in steps(events)) / len(steps(events))
    assert floor < mean <= 1.02 * floor


async def test_noise_is_the_same_for_a_sample_in_every_epoch(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # Given a head that does not learn, one example, and noise.
    one = Examples(samples(1, seed=3))
    overrides = ("noise.mode=relative", "lora.parts=[trunk, tail]", "training.gradient_noise=0.1")
    async with scripted_run(tiny_llama, tmp_path, *overrides) as run:
        events, _ = await train(run.settings, examples=one)
        forwards = [f for f in run.trunk.heard if f.envelope.kind is Kind.FORWARD]
        backwards = [f for f in run.trunk.heard if f.envelope.kind is Kind.BACKWARD]
    assert steps(events)[0].sigma > 0.0
    # Then all that was ever sent of it are the same bytes, and averaging gains nothing.
    rows = {
        bytes(frame.payload[0])[start : start + size]
        for frame in forwards
        for size in [len(frame.payload[0]) // len(frame.body(Forward).lengths)]
        for start in range(0, len(frame.payload[0]), size)
    }
    assert len(rows) == 1
    # But gradients differ, for two batches of one step too.
    assert len({bytes(frame.payload[0]) for frame in backwards}) == len(backwards)
    assert {frame.body(Backward).micro for frame in backwards} == {0, 1}


async def test_the_loss_on_what_is_held_out_is_the_models(tiny_llama: Path, tmp_path: Path) -> None:
    held_out = samples(5, seed=8)
    data = Examples(DATA.train, held_out)
    rounds = ("federation.rounds=1", "lora.dropout=0.3")
    async with scripted_run(tiny_llama, tmp_path, *rounds) as run:
        events, adapters = await train(run.settings, examples=data)
        how = TrainingSettings.of(run.settings, 0, 1 << 16)
        whole = Unsplit(tiny_llama, how.lora, range(4))
        whole.copy({**adapters, **trunk_of(run)})
    whole.model.eval()
    (told,) = [event for event in events if isinstance(event, RoundDone)]
    expected = float(whole.loss(held_out).detach())
    assert told.validation_loss == pytest.approx(expected, rel=TOLERANCE)


async def test_who_does_not_fit_the_run_is_told_so(tiny_llama: Path, tmp_path: Path) -> None:
    async with scripted_run(tiny_llama, tmp_path) as run:
        other = run.settings.replace(lora={"rank": 4})
        with pytest.raises(RunMismatch):
            await train(other)
        unknown = run.settings.replace(training={"run": "run-2"}, client={"give_up_s": 0.5})
        # A broker that began just now says that nodes may still come.
        with pytest.raises((RunUnknown, Busy)):
            await train(unknown)
        with pytest.raises(TaskDataError, match="the shard is empty: 2"):
            await train(run.settings, examples=Examples([Encoded((1,), ()), Encoded((), (2,))]))


async def test_numbers_that_are_not_finite_end_it_with_an_error(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # Given a trunk whose adapter is spoilt after the first round.
    async with scripted_run(tiny_llama, tmp_path) as run:

        async def train_and_spoil() -> None:
            async with TrainingClient(run.settings, "a", DATA) as trainer:
                async for event in trainer.run():
                    if isinstance(event, RoundDone):
                        for weight in run.trunk.trunks["a"].adapter.parameters().values():
                            weight.data.fill_(torch.nan)

        with pytest.raises(TrainingDiverged, match="in round 1: the trunk's outputs"):
            await train_and_spoil()
        # Then what it has saved is of before.
        member = tmp_path / "run-1" / "members" / "a"
        assert [entry.name for entry in member.iterdir()] == ["state-1"]
        # And shared adapters are looked at before they are used.
        next(iter(run.aggregator.shared.values())).fill_(torch.inf)
        with pytest.raises(MalformedFrame, match="not all finite"):
            await train(run.settings)


async def test_a_run_that_is_given_up_is_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    async with scripted_run(tiny_llama, tmp_path) as run:
        run.aggregator.gives_up = True
        with pytest.raises(RunGivenUp):
            await train(run.settings)


async def test_whose_place_another_process_took_does_not_take_it_back(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async def train_until_replaced(run: ScriptedRun, node: ScriptedNode) -> None:
        async with TrainingClient(run.settings, "a", DATA) as trainer:
            async for event in trainer.run():
                if isinstance(event, StepDone):
                    node.replace("a")

    # Given a member in the middle of a round.
    async with scripted_run(tiny_llama, tmp_path) as run:
        for node in (run.trunk, run.aggregator):
            # When another one enlists under its name.
            with pytest.raises(MemberReplaced):
                await train_until_replaced(run, node)
        # Then it ends, and has not enlisted again.
        assert run.aggregator.kinds(Kind.ENLIST) == 2
