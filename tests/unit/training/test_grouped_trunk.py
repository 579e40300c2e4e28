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
from fedsea_mq.model.grouped_lora import GroupedLora, Segment
from fedsea_mq.model.lora import LoraSettings, NamedBlocks
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import load_trunk
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.grouped_trunk import GroupedTrunk
from fedsea_mq.training.load import grouped_trunk as training_trunk
from fedsea_mq.training.load import load_grouped_trunk, load_trained_trunk
from fedsea_mq.training.settings import OptimizerSettings, TrainingSettings
from fedsea_mq.training.split_step import TrunkStep

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


def own_trunk(folder: Path, settings: TrainingSettings = SETTINGS) -> TrunkStep:
    return load_trained_trunk(Checkpoint.open(str(folder)), CUT, settings)


def joint_batch(clients: tuple[str, ...] = CLIENTS) -> Batch:
    lengths = tuple(length for c in clients for length in LENGTHS[c])
    return Batch(lengths, tuple(c for c in clients for _ in LENGTHS[c]))


def joint_step(trunk: GroupedTrunk, said: Clients, clients: tuple[str, ...] = CLIENTS) -> Any:
    """Outputs and input gradients of one pass for all of them; no optimiser step."""
    outputs = trunk.forward("", torch.cat([said.states[c] for c in clients]), joint_batch(clients))
    gradient = trunk.backward("", torch.cat([said.gradients[c] for c in clients]))
    return outputs, gradient


def own_step(trunk: TrunkStep, said: Clients, client: str) -> Any:
    outputs = trunk.forward("", said.states[client], Batch(LENGTHS[client]))
    return outputs, trunk.backward("", said.gradients[client])


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
    own = {client: own_trunk(tiny_llama, settings) for client in CLIENTS}
    for client, trunk in own.items():
        shared.add(client, trunk.adapter.tensors())
    # When all learn, each by its own norm, and are averaged after two steps.
    for step in range(4):
        said = Clients(step)
        outputs, gradient = joint_step(shared, said)
        apart = [own_step(own[client], said, client) for client in CLIENTS]
        assert close(outputs, torch.cat([one[0] for one in apart]), tolerance)
        assert close(gradient, torch.cat([one[1] for one in apart]), tolerance)
        for factor, (client, trunk) in enumerate(own.items(), start=1):
            ours, theirs = shared.adapters[client], trunk.adapter
            assert ours.squared_norm() == pytest.approx(theirs.squared_norm(), rel=10 * tolerance)
            ours.step(factor / 4)
            theirs.step(factor / 4)
        if step == 1:
            average(shared, own)
    # Then the adapters are equal, and those of different clients are not.
    for client, trunk in own.items():
        mine = shared.adapters[client].tensors()
        assert all(close(mine[n], t, 100 * tolerance) for n, t in trunk.adapter.tensors().items())
    first, second = (shared.adapters[client].tensors() for client in CLIENTS[:2])
    assert not any(close(first[name], second[name], 1e-2) for name in first if "lora_B" in name)


def average(shared: GroupedTrunk, own: dict[str, TrunkStep]) -> None:
    """By weights 1, 2 and 3."""
    weights = {client: number + 1.0 for number, client in enumerate(CLIENTS)}
    shared.average(weights)
    parts = {client: trunk.adapter.tensors() for client, trunk in own.items()}
    mean = {n: sum(parts[c][n] * weights[c] / 6 for c in CLIENTS) for n in parts[CLIENTS[0]]}
    for trunk in own.values():
        trunk.adapter.load(mean)


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
    trunk.forward("", torch.cat([said.states[c] for c in CLIENTS]), joint_batch())
    said.gradients["bob"].zero_()
    before = trunk.adapters["bob"].tensors()
    # When zeros stand for it.
    trunk.backward("", torch.cat([said.gradients[c] for c in CLIENTS]))
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
        trunk.forward(client, said.states[client], joint_batch((client,)))
    trunk.adapters["ann"].step(1.0)
    with pytest.raises(TicketUnknown):
        trunk.backward("ann", said.gradients["ann"])
    assert trunk.backward("bob", said.gradients["bob"]) is not None
    trunk.remove("cy")
    with pytest.raises(TicketUnknown):
        trunk.backward("cy", said.gradients["cy"])


def test_blocks_that_serve_can_be_trained_on_at_the_same_time(tiny_llama: Path) -> None:
    # Given blocks that serve one session without an adapter, and one with an adapter in training.
    run = load_trunk(Checkpoint.open(str(tiny_llama)), CUT, Numerics())
    grouped = GroupedLora(NamedBlocks.of(run), SETTINGS.lora.targets)
    trunk = training_trunk(run, grouped, SETTINGS, HIDDEN)
    trunk.add("ann")
    caches = [run.new_cache(16), run.new_cache(16)]
    said = Clients(0)
    prompt, states = said.states["cy"][:6], said.states["ann"]

    def serve(start: int, count: int) -> torch.Tensor:
        spans = [Span(cache, start, count) for cache in caches]
        segments = [Segment(None, count), Segment("ann", count)]
        rows = prompt[start : start + count].repeat(2, 1)
        with torch.inference_mode(), grouped.told(segments):
            served: torch.Tensor = run(rows, spans)
        return served

    # When a training step comes between two steps of the sessions, at each of its points.
    expected = own_trunk(tiny_llama).forward("", prompt, Batch((6,)))
    first = serve(0, 2)
    trunk.forward("", states, joint_batch(("ann",)))
    second = serve(2, 2)
    trunk.backward("", said.gradients["ann"])
    trunk.adapters["ann"].step(1.0)
    third = serve(4, 2)
    # Then the session without an adapter is served as if there were no training,
    plain = torch.cat([served[:2] for served in (first, second, third)])
    assert close(plain, expected, 1e-5)
    # and the other one by what was learned so far: nothing before the step.
    adapted = torch.cat([served[2:] for served in (first, second)])
    assert close(adapted, expected[:4], 1e-5)
    assert not close(third[2:], expected[4:], 1e-3)


def test_a_batch_must_say_whose_it_is_and_of_whom_the_trunk_knows(tiny_llama: Path) -> None:
    trunk = grouped_trunk(tiny_llama)
    trunk.add("ann")
    states = Clients(0).states["ann"]
    with pytest.raises(BatchMismatch):
        trunk.forward("", states, Batch(LENGTHS["ann"]))
    with pytest.raises(BatchMismatch):
        Batch(LENGTHS["ann"], ("ann",))
    with pytest.raises(AdapterError):
        trunk.forward("", states, Batch(LENGTHS["ann"], ("ann", "bob")))
    with pytest.raises(AdapterError):
        trunk.add("ann")
    with pytest.raises(AdapterError):
        trunk.average({"ann": 1.0, "bob": 1.0})
    with pytest.raises(AdapterError):
        trunk.average({"ann": 0.0})
