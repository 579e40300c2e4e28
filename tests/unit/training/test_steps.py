"""Tickets, bounds, bad input, dropout, recomputation and bf16 of the split step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import (
    BatchMismatch,
    Busy,
    ConfigError,
    TicketInUse,
    TicketUnknown,
    TrainingDiverged,
)
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.grouped_lora import layer_seed
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.tasks.encoding import IGNORED
from fedsea_mq.training.batch import Batch, Packed, answer_rows
from fedsea_mq.training.grouped_trunk import GroupedTrunk
from fedsea_mq.training.load import load_grouped_trunk
from fedsea_mq.training.optimizer import clip_factor
from fedsea_mq.training.seeds import derived_seed
from fedsea_mq.training.settings import OptimizerSettings, Schedule, TrainingSettings
from fedsea_mq.training.sliced_blocks import finish
from tests.unit.training.split_training import ADAPTER, SplitTraining, adapted, check_close
from tests.unit.training.unsplit import Unsplit, UnsplitTraining, samples

CUT = Cut(1, 1)
HIDDEN = 64
BATCH = Batch((3, 4))
DROPOUT = TrainingSettings(LoraSettings(dropout=0.3), optimizer=OptimizerSettings(1e-2))


class Trunk:
    """A trunk with one adapter, whose passes run to their end."""

    def __init__(self, trunk: GroupedTrunk) -> None:
        self.drop = trunk.drop
        self.adapter = trunk.adapters[ADAPTER]
        self._trunk = trunk

    def forward(self, ticket: object, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        return finish(self._trunk.forward(ticket, states, adapted(batch)))

    def backward(self, ticket: object, gradient: torch.Tensor) -> torch.Tensor:
        return finish(self._trunk.backward(ticket, gradient))


def trunk(folder: Path, settings: TrainingSettings | None = None) -> Trunk:
    checkpoint = Checkpoint.open(str(folder))
    part = load_grouped_trunk(checkpoint, CUT, settings or TrainingSettings())
    part.add(ADAPTER)
    return Trunk(part)


def drawn(rows: int = BATCH.total, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(seed))


def test_a_ticket_is_good_for_one_gradient(tiny_llama: Path) -> None:
    part = trunk(tiny_llama)
    with pytest.raises(TicketUnknown):
        part.backward("never", drawn())
    part.forward("one", drawn(), BATCH)
    with pytest.raises(TicketInUse):
        part.forward("one", drawn(), BATCH)
    part.backward("one", drawn())
    with pytest.raises(TicketUnknown):
        part.backward("one", drawn())
    part.forward("one", drawn(), BATCH)
    part.drop("one")
    with pytest.raises(TicketUnknown):
        part.backward("one", drawn())


def test_a_step_and_new_weights_outdate_what_waits(tiny_llama: Path) -> None:
    # Given passes over weights that then change.
    part = trunk(tiny_llama)
    weights = part.adapter.tensors()
    changes = {
        "step": lambda: part.adapter.step(1.0),
        "load": lambda: part.adapter.load(weights),
        "forget": part.adapter.forget,
    }
    for ticket, change in changes.items():
        part.forward(ticket, drawn(), BATCH)
        change()
        # Then their gradients, which would be wrong, are refused.
        with pytest.raises(TicketUnknown):
            part.backward(ticket, drawn())


def test_two_clients_in_one_pass_are_two_passes(tiny_llama: Path) -> None:
    # Given what two clients send, and the gradients that they answer.
    joint, apart = trunk(tiny_llama), trunk(tiny_llama)
    lengths = {"ann": (3, 9), "bob": (6,)}
    states = {client: drawn(sum(own), seed=1) for client, own in lengths.items()}
    gradients = {client: drawn(sum(own), seed=2) for client, own in lengths.items()}
    # When one trunk takes both at once, and another one after the other.
    both = Batch((*lengths["ann"], *lengths["bob"]))
    outputs = joint.forward("both", torch.cat(list(states.values())), both)
    gradient = joint.backward("both", torch.cat(list(gradients.values())))
    for client, own in lengths.items():
        one = apart.forward(client, states[client], Batch(own))
        back = apart.backward(client, gradients[client])
        # Then each gets the same back.
        rows = slice(0, 12) if client == "ann" else slice(12, 18)
        check_close({"outputs": outputs[rows]}, {"outputs": one}, 1e-5)
        check_close({"gradient": gradient[rows]}, {"gradient": back}, 1e-5)
    # And the adapter learns the same.
    ours, theirs = (
        {name: weight.grad for name, weight in one.adapter.parameters().items() if "lora_B" in name}
        for one in (joint, apart)
    )
    check_close(ours, theirs, 1e-5)


def test_what_waits_is_bounded_by_its_positions(tiny_llama: Path) -> None:
    part = trunk(tiny_llama, TrainingSettings(max_positions=2 * BATCH.total))
    part.forward(0, drawn(), BATCH)
    part.forward(1, drawn(), BATCH)
    with pytest.raises(Busy):
        part.forward(2, drawn(), BATCH)
    part.backward(0, drawn())
    part.forward(2, drawn(), BATCH)


def test_a_gradient_of_another_shape_is_refused_and_the_right_one_still_taken(
    tiny_llama: Path,
) -> None:
    part = trunk(tiny_llama)
    part.forward(0, drawn(), BATCH)
    for bad in (drawn(6), torch.randn(7, 63), torch.randn(1, 7, 64)):
        with pytest.raises(BatchMismatch):
            part.backward(0, bad)
    gradient = part.backward(0, drawn())
    assert gradient.shape == (7, HIDDEN)


def test_batches_that_do_not_fit_are_refused(tiny_llama: Path) -> None:
    split = SplitTraining.load(tiny_llama, CUT, TrainingSettings())
    for lengths in ((), (3, 0), (3, -1, 5)):
        with pytest.raises(BatchMismatch):
            Batch(lengths)
    with pytest.raises(BatchMismatch):
        split.head.forward(0, torch.zeros(6, dtype=torch.long), BATCH)
    with pytest.raises(BatchMismatch):
        finish(split.trunk.forward(0, drawn(6), adapted(BATCH)))
    labels = torch.full((7,), 5)
    with pytest.raises(BatchMismatch):
        split.tail.learn(drawn(6), BATCH, labels)
    with pytest.raises(BatchMismatch):
        split.tail.learn(drawn(), BATCH, labels[:6])
    # Labels of first tokens only: nothing predicts them.
    first = torch.tensor([5, IGNORED, IGNORED, 5, IGNORED, IGNORED, IGNORED])
    with pytest.raises(BatchMismatch):
        split.tail.learn(drawn(), BATCH, first)


def test_answer_rows_are_those_before_the_answers_and_never_another_sequences() -> None:
    labels = torch.tensor([1, IGNORED, 3, 4, 5, IGNORED, 7])
    assert answer_rows(labels, BATCH).tolist() == [1, 3, 5]
    assert answer_rows(labels, Batch((1, 6))).tolist() == [1, 2, 3, 5]


def test_numbers_that_are_not_finite_change_nothing(tiny_llama: Path) -> None:
    split = SplitTraining.load(tiny_llama, CUT, TrainingSettings())
    one = Packed.of(samples(2))
    states = torch.full((one.batch.total, HIDDEN), torch.nan)
    with pytest.raises(TrainingDiverged):
        split.tail.learn(states, one.batch, one.labels)
    assert split.tail.adapter.squared_norm() == 0.0
    # A gradient off the wire.
    part = trunk(tiny_llama)
    before = part.adapter.tensors()
    part.forward(0, drawn(), BATCH)
    part.backward(0, torch.full((7, HIDDEN), torch.inf))
    with pytest.raises(TrainingDiverged):
        clip_factor([part.adapter.squared_norm()], 1.0)
    with pytest.raises(TrainingDiverged):
        part.adapter.step(1.0)
    after = part.adapter.tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert part.adapter.steps == 0


def test_settings_out_of_range_are_refused() -> None:
    for bad in (
        lambda: LoraSettings(rank=0),
        lambda: LoraSettings(alpha=0),
        lambda: LoraSettings(dropout=1.0),
        lambda: LoraSettings(targets=()),
        lambda: LoraSettings(targets=("lm_head",)),
        lambda: TrainingSettings(dtype="fp16"),
        lambda: TrainingSettings(max_positions=0),
        lambda: OptimizerSettings(learning_rate=0.0),
        lambda: OptimizerSettings(schedule=Schedule.COSINE),
    ):
        with pytest.raises(ConfigError):
            bad()


def test_recomputing_the_trunk_changes_no_bit_with_dropout_too(tiny_llama: Path) -> None:
    # Given the same training with the trunk's activations kept and recomputed.
    kept = SplitTraining.load(tiny_llama, CUT, DROPOUT)
    recomputed = SplitTraining.load(tiny_llama, CUT, replace(DROPOUT, recomputes=True))
    # When the process draws random numbers between forward and backward too.
    for split in (kept, recomputed):
        for seed in range(3):
            torch.rand(seed + 1)
            split.step(samples(2, seed), samples(1, seed + 9))
    # Then the adapters are the same.
    theirs = kept.adapter()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in recomputed.adapter().items())


def test_recomputing_keeps_states_between_blocks_only(tiny_llama: Path) -> None:
    def saved_bytes(settings: TrainingSettings) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        part = trunk(tiny_llama, settings)
        batch = Batch((100,))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            part.forward(0, drawn(100), batch)
        return sum(sizes.values())

    # No graph keeps anything: what enters each block is all there is.
    assert saved_bytes(TrainingSettings(recomputes=True)) == 0
    assert saved_bytes(TrainingSettings()) > 12 * 100 * HIDDEN * 4


class _SeededDropout(torch.nn.Module):
    """In the place of peft's dropout: the mask of a layer, by the seed of the sequence."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self.seed = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(layer_seed(self.seed, self.layer))
        return torch.nn.functional.dropout(rows, 0.3)


def test_dropout_is_that_of_peft_with_the_same_masks(tiny_llama: Path) -> None:
    # Given LoRA with dropout on a trunk that is the whole model but for its ends, and a peft model
    # that draws each layer's mask from the same seed.
    settings = replace(DROPOUT, parts=frozenset({Part.TRUNK}))
    split = SplitTraining.load(tiny_llama, Cut(0, 0), settings)
    unsplit = Unsplit(tiny_llama, settings.lora, range(4))
    unsplit.copy(split.adapter())
    seeded = []
    for name, module in unsplit.model.named_modules():
        if hasattr(module, "lora_dropout"):
            seeded.append(_SeededDropout(name.removeprefix("base_model.model.")))
            module.lora_dropout["default"] = seeded[-1]
    assert len(seeded) == 16
    # When both learn from one sequence a step, then they learn the same.
    training = UnsplitTraining(unsplit, settings.optimizer, 1.0)
    for step in range(4):
        for dropout in seeded:
            dropout.seed = derived_seed(step, 0)
        batch = samples(1, step)
        assert split.step(batch) == pytest.approx(training.step(batch), rel=1e-5)


def test_dropout_at_the_ends_is_that_of_peft(tiny_llama: Path) -> None:
    # Given LoRA with dropout on a head that is all but one block.
    settings = replace(DROPOUT, parts=frozenset({Part.HEAD}), seed=3)
    split = SplitTraining.load(tiny_llama, Cut(3, 0), settings)
    unsplit = Unsplit(tiny_llama, settings.lora, range(3))
    unsplit.copy(split.adapter())
    training = UnsplitTraining(unsplit, settings.optimizer, 1.0)
    # When the unsplit model draws from the same seed, then both learn the same.
    stream = derived_seed(3, "dropout", "head")
    for draws in range(4):
        batch = samples(1, draws)
        torch.manual_seed(derived_seed(stream, draws))
        assert split.step(batch) == pytest.approx(training.step(batch), rel=1e-5)


def test_dropout_leaves_the_processs_random_numbers_alone(tiny_llama: Path) -> None:
    split = SplitTraining.load(tiny_llama, CUT, DROPOUT)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    split.step(samples(2))
    assert torch.equal(torch.rand(3), expected)


def test_bf16_learns_as_the_unsplit_model_under_autocast(tiny_llama: Path) -> None:
    # Given frozen weights that bf16 holds exactly, and adapters in fp32.
    settings = TrainingSettings(optimizer=OptimizerSettings(1e-2), dtype="bf16")
    split = SplitTraining.load(tiny_llama, CUT, settings)
    unsplit = Unsplit(tiny_llama, settings.lora, range(4))
    with torch.no_grad():
        for weight in unsplit.model.parameters():
            if not weight.requires_grad and weight.dim() > 1:
                weight.copy_(weight.bfloat16())
    unsplit.copy(split.adapter())
    assert {tensor.dtype for tensor in split.adapter().values()} == {torch.float32}
    # When both learn under autocast, then losses are as close as bf16 can tell.
    training = UnsplitTraining(unsplit, settings.optimizer, 1.0)
    for seed in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            theirs = training.step(samples(3, seed))
        assert split.step(samples(3, seed)) == pytest.approx(theirs, rel=1e-2)


def test_parts_that_do_not_train_keep_no_graph(tiny_llama: Path) -> None:
    settings = TrainingSettings(parts=frozenset({Part.TAIL}), max_positions=1)
    split = SplitTraining.load(tiny_llama, CUT, settings)
    assert not split.head.wants_gradient
    before = split.tail.adapter.tensors()
    # No positions wait: more than the bound would hold pass.
    split.step(samples(3))
    after = split.tail.adapter.tensors()
    assert not all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_evaluation_has_no_dropout_and_leaves_no_trace(tiny_llama: Path) -> None:
    # Given training with dropout, and the same without, from the same adapters.
    split = SplitTraining.load(tiny_llama, CUT, DROPOUT)
    plain = SplitTraining.load(tiny_llama, CUT, replace(DROPOUT, lora=LoraSettings()))
    for seed in range(2):
        split.step(samples(2, seed))
    adapter = split.adapter()
    for own in plain.adapters:
        own.load({name: adapter[name] for name in own.tensors()})
    one = Packed.of(samples(3))
    # When head and tail are evaluated, then as the one that has none.
    states = split.head.evaluate(one.ids, one.batch)
    assert torch.equal(states, plain.head.forward(0, one.ids, one.batch))
    loss = split.tail.evaluate(states, one.batch, one.labels)
    learned = plain.tail.learn(states, one.batch, one.labels)
    assert loss / one.answer_tokens == pytest.approx(learned.loss, rel=1e-6)
    # And training goes on as if nothing had been asked.
    again = SplitTraining.load(tiny_llama, CUT, DROPOUT)
    for seed in range(2):
        again.step(samples(2, seed))
    assert split.step(samples(2, 9)) == again.step(samples(2, 9))
