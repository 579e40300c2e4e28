"""One adapter a client over one copy of the trunk is as many trunks of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsea_mq.errors import AdapterError, BatchMismatch, TicketUnknown
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import load_trunk
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.grouped_trunk import GroupedTrunk
from fedsea_mq.training.load import grouped_trunk as training_trunk
from fedsea_mq.training.load import load_grouped_trunk
from fedsea_mq.training.settings import OptimizerSettings, TrainingSettings
from fedsea_mq.training.sliced_blocks import SLICE_POSITIONS, finish

CUT = Cut(1, 1)
HIDDEN = 64
CLIENTS = ("ann", "bob", "cy")
LENGTHS = {"ann": (5, 9), "bob": (12,), "cy": (3, 3, 7)}
SETTINGS = TrainingSettings(
    lora=LoraSettings(targets=("q_proj", "v_proj", "down_proj")),
    optimizer=OptimizerSettings(learning_rate=1e-2),
)


class Clients:
    """What heads would send and tails would answer: seeded, and other ones each step."""

    def __init__(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        self.states = {c: self._drawn(sum(LENGTHS[c]), generator) for c in CLIENTS}
        self.gradients = {c: self._drawn(sum(LENGTHS[c]), generator) for c in CLIENTS}

    def _drawn(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(rows, HIDDEN, generator=generator)


def grouped_trunk(folder: Path, settings: TrainingSettings = SETTINGS) -> GroupedTrunk:
    return load_grouped_trunk(Checkpoint.open(str(folder)), CUT, settings)


def own_trunk(folder: Path, client: str, settings: TrainingSettings = SETTINGS) -> GroupedTrunk:
    trunk = grouped_trunk(folder, settings)
    trunk.add(client)
    return trunk


def joint_batch(clients: tuple[str, ...] = CLIENTS) -> Batch:
    lengths = tuple(length for c in clients for length in LENGTHS[c])
    return Batch(lengths, tuple(c for c in clients for _ in LENGTHS[c]))


def joint_step(trunk: GroupedTrunk, said: Clients, clients: tuple[str, ...] = CLIENTS) -> Any:
    """Outputs and input gradients of one pass for all of them; no optimiser step."""
    states = torch.cat([said.states[c] for c in clients])
    outputs = finish(trunk.forward("", states, joint_batch(clients)))
    gradients = torch.cat([said.gradients[c] for c in clients])
    return outputs, finish(trunk.backward("", gradients))


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    return float((ours - theirs).norm() / theirs.norm()) <= tolerance


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [({}, 1e-5), ({"recomputes": True}, 1e-5), ({"dtype": "bf16"}, 2e-2)],
    ids=["kept", "recomputed", "bf16"],
)
def test_clients_learn_side_by_side_as_on_trunks_of_their_own(
    tiny_llama: Path, change: dict[str, Any], tolerance: float
) -> None:
    # Given a shared trunk, and a trunk of its own for each client, from equal adapters.
    settings = replace(SETTINGS, **change)
    shared = grouped_trunk(tiny_llama, settings)
    own = {client: own_trunk(tiny_llama, client, settings) for client in CLIENTS}
    for client, trunk in own.items():
        shared.add(client, trunk.adapters[client].tensors())
    # When all learn, each by its own norm, and are averaged after two steps.
    for step in range(4):
        said = Clients(step)
        outputs, gradient = joint_step(shared, said)
        apart = [joint_step(own[client], said, (client,)) for client in CLIENTS]
        assert close(outputs, torch.cat([one[0] for one in apart]), tolerance)
        assert close(gradient, torch.cat([one[1] for one in apart]), tolerance)
        for factor, (client, trunk) in enumerate(own.items(), start=1):
            ours, theirs = shared.adapters[client], trunk.adapters[client]
            assert ours.squared_norm() == pytest.approx(theirs.squared_norm(), rel=10 * tolerance)
            ours.step(factor / 4)
            theirs.step(factor / 4)
        if step == 1:
            average(shared, own)
    # Then the adapters are equal, and those of different clients are not.
    for client, trunk in own.items():
        mine = shared.adapters[client].tensors()
        theirs = trunk.adapters[client].tensors()
        assert all(close(mine[n], t, 100 * tolerance) for n, t in theirs.items())
    first, second = (shared.adapters[client].tensors() for client in CLIENTS[:2])
    assert not any(close(first[name], second[name], 1e-2) for name in first if "lora_B" in name)


def average(shared: GroupedTrunk, own: dict[str, GroupedTrunk]) -> None:
    """By weights 1, 2 and 3."""
    weights = {client: number + 1.0 for number, client in enumerate(CLIENTS)}
    mean = shared.average(weights)
    parts = {client: trunk.adapters[client].tensors() for client, trunk in own.items()}
    expected = {n: sum(parts[c][n] * weights[c] / 6 for c in CLIENTS) for n in mean}
    for client, trunk in own.items():
        shared.adapters[client].load(mean)
        trunk.adapters[client].load(expected)


@pytest.mark.parametrize("recomputes", [False, True], ids=["kept", "recomputed"])
def test_slices_of_any_size_are_one_pass(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, recomputes: bool
) -> None:
    # Given dropout, a pass that is one slice a block, and one of a slice a sequence.
    lora = replace(SETTINGS.lora, dropout=0.3)
    settings = replace(SETTINGS, lora=lora, recomputes=recomputes)
    said, seeds = Clients(0), tuple(range(6))
    results = []
    for positions, slices in ((SLICE_POSITIONS, 2), (1, 2 * 6)):
        monkeypatch.setattr("fedsea_mq.training.sliced_blocks.SLICE_POSITIONS", positions)
        trunk = grouped_trunk(tiny_llama, settings)
        for client in CLIENTS:
            trunk.add(client)
        batch = replace(joint_batch(), seeds=seeds)
        run = trunk.forward("", torch.cat([said.states[c] for c in CLIENTS]), batch)
        taken, outputs = counted(run)
        assert taken == slices
        back = trunk.backward("", torch.cat([said.gradients[c] for c in CLIENTS]))
        taken, gradient = counted(back)
        assert taken == slices
        norms = [trunk.adapters[client].squared_norm() for client in CLIENTS]
        results.append((outputs, gradient, torch.tensor(norms)))
    # Then outputs, gradients and what the adapters would learn are the same.
    for ours, theirs in zip(*results, strict=True):
        assert close(ours, theirs, 1e-5)


def counted(slices: Any) -> tuple[int, Any]:
    """How many slices there are, and their result."""
    count = 0
    while True:
        try:
            next(slices)
            count += 1
        except StopIteration as done:
            return count, done.value


def test_dropout_follows_from_the_seed_and_not_from_who_is_in_the_pass(tiny_llama: Path) -> None:
    # Given dropout, and a client whose sequences pass alone and with others.
    settings = replace(SETTINGS, lora=replace(SETTINGS.lora, dropout=0.5))
    trunk = grouped_trunk(tiny_llama, settings)
    for client in CLIENTS:
        # B of zeros would hide what is dropped.
        trunk.add(client)
        ones = {n: torch.full_like(t, 0.1) for n, t in trunk.adapters[client].tensors().items()}
        trunk.adapters[client].load(ones)
    said = Clients(0)

    def passed(clients: tuple[str, ...], seeds: tuple[int, ...]) -> torch.Tensor:
        states = torch.cat([said.states[c] for c in clients])
        batch = replace(joint_batch(clients), seeds=seeds)
        return finish(trunk.forward("", states, batch, wants_gradient=False))

    alone = passed(("bob",), (7,))
    joined = passed(CLIENTS, (1, 2, 7, 4, 5, 6))
    assert close(joined[14:26], alone, 1e-5)
    # And another seed, or none, is another pass.
    assert not close(passed(("bob",), (8,)), alone, 1e-2)
    assert not close(passed(("bob",), ()), alone, 1e-2)


def test_another_client_costs_its_adapter(tiny_llama: Path) -> None:
    trunk = grouped_trunk(tiny_llama)
    trunk.add("ann")
    trunk.add("bob")
    ann, bob = (trunk.adapters[c].parameters().values() for c in ("ann", "bob"))
    assert not {p.data_ptr() for p in ann} & {p.data_ptr() for p in bob}
    # Of rank 8: two blocks of q [64, 64], v [32, 64] and down [64, 96].
    assert sum(p.numel() for p in bob) == 2 * 8 * (64 + 64 + 64 + 32 + 96 + 64)


def test_who_does_not_answer_learns_nothing(tiny_llama: Path) -> None:
    # Given a joint pass, of which one client's gradient never comes.
    trunk = grouped_trunk(tiny_llama)
    for client in CLIENTS:
        trunk.add(client)
    said = Clients(0)
    states = torch.cat([said.states[c] for c in CLIENTS])
    finish(trunk.forward("", states, joint_batch()))
    said.gradients["bob"].zero_()
    before = trunk.adapters["bob"].tensors()
    # When zeros stand for it.
    finish(trunk.backward("", torch.cat([said.gradients[c] for c in CLIENTS])))
    assert trunk.adapters["bob"].squared_norm() == 0.0
    trunk.adapters["bob"].forget()
    # Then the others learn, and its adapter and optimiser are as they were.
    assert trunk.adapters["ann"].squared_norm() > 0.0
    trunk.adapters["ann"].step(1.0)
    assert trunk.adapters["bob"].steps == 0
    after = trunk.adapters["bob"].tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_step_outdates_the_passes_over_that_adapter_only(tiny_llama: Path) -> None:
    trunk = grouped_trunk(tiny_llama)
    said = Clients(0)
    for client in CLIENTS:
        trunk.add(client)
        finish(trunk.forward(client, said.states[client], joint_batch((client,))))
    trunk.adapters["ann"].step(1.0)
    with pytest.raises(TicketUnknown):
        finish(trunk.backward("ann", said.gradients["ann"]))
    assert finish(trunk.backward("bob", said.gradients["bob"])).shape == (12, HIDDEN)
    trunk.remove("cy")
    with pytest.raises(TicketUnknown):
        finish(trunk.backward("cy", said.gradients["cy"]))


def test_blocks_that_serve_can_be_trained_on_at_the_same_time(tiny_llama: Path) -> None:
    # Given blocks that serve a session, and an adapter in training on them.
    run = load_trunk(Checkpoint.open(str(tiny_llama)), CUT, Numerics())
    trunk = training_trunk(run, SETTINGS, HIDDEN)
    trunk.add("ann")
    cache = run.new_cache(64)
    said = Clients(0)
    prompt = said.states["cy"]
    served: list[torch.Tensor] = []

    def serve() -> None:
        start = len(served)
        with torch.inference_mode():
            served.append(run(prompt[start : start + 1], [Span(cache, start, 1)]))

    # When a step of the session comes after each slice of a training step.
    slices = 0
    for work in (
        trunk.forward("", said.states["ann"], joint_batch(("ann",))),
        trunk.backward("", said.gradients["ann"]),
    ):
        for _ in work:
            serve()
            slices += 1
        serve()
    trunk.adapters["ann"].step(1.0)
    serve()
    assert slices == 4
    # Then the session is served as if there were no training, and the training is as without it.
    expected = finish(own_trunk(tiny_llama, "cy").forward("", prompt[:7], Batch((7,), ("cy",))))
    assert close(torch.cat(served), expected, 1e-5)
    alone = own_trunk(tiny_llama, "ann")
    joint_step(alone, said, ("ann",))
    alone.adapters["ann"].step(1.0)
    theirs = alone.adapters["ann"].tensors()
    assert all(torch.equal(t, theirs[n]) for n, t in trunk.adapters["ann"].tensors().items())


def test_a_batch_must_say_whose_it_is_and_of_whom_the_trunk_knows(tiny_llama: Path) -> None:
    trunk = grouped_trunk(tiny_llama)
    trunk.add("ann")
    states = Clients(0).states["ann"]
    with pytest.raises(BatchMismatch):
        finish(trunk.forward("", states, Batch(LENGTHS["ann"])))
    with pytest.raises(BatchMismatch):
        Batch(LENGTHS["ann"], ("ann",))
    with pytest.raises(BatchMismatch):
        Batch(LENGTHS["ann"], ("ann", "ann"), (1,))
    with pytest.raises(AdapterError):
        finish(trunk.forward("", states, Batch(LENGTHS["ann"], ("ann", "bob"))))
    with pytest.raises(AdapterError):
        trunk.add("ann")
    with pytest.raises(AdapterError):
        trunk.average({"ann": 1.0, "bob": 1.0})
    with pytest.raises(AdapterError):
        trunk.average({"ann": 0.0})
