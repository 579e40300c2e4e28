"""Split LoRA training is peft's training of the unsplit model, step by step.

Tolerances, relative: losses 1e-5; gradients of the same adapters 1e-5 of each tensor's norm;
adapters after the steps 1e-3. Adam divides by the gradient's own size, so that rounding in the
smallest gradients is not small in the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.batch import Packed
from fedsea_mq.training.settings import OptimizerSettings, Schedule, TrainingSettings
from fedsea_mq.training.sliced_blocks import finish
from tests.conftest import MakeModel
from tests.unit.training.split_training import SplitTraining, adapted, check_close
from tests.unit.training.unsplit import Unsplit, UnsplitTraining, samples, trained_name

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-5
ADAPTER_TOLERANCE = 1e-3
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, grouped queries": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral, window 6": ("mistral", {}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
}
STEPS = 5
FAST = OptimizerSettings(learning_rate=1e-2)


def all_blocks(cut: Cut, parts: frozenset[Part]) -> list[int]:
    return [index for part in parts for index in cut.blocks(part, 4)]


def pair(
    folder: Path, cut: Cut, settings: TrainingSettings, max_norm: float = 1.0
) -> tuple[SplitTraining, UnsplitTraining]:
    """Split and unsplit training from the same adapters."""
    split = SplitTraining.load(folder, cut, settings, max_norm)
    unsplit = Unsplit(folder, settings.lora, all_blocks(cut, settings.parts))
    unsplit.copy(split.adapter())
    return split, UnsplitTraining(unsplit, settings.optimizer, max_norm)


def check_equal(
    split: SplitTraining, unsplit: UnsplitTraining, batches: list[list[Encoded]]
) -> None:
    start = split.adapter()
    for number, batch in enumerate(batches):
        ours, theirs = split.step(batch), unsplit.step(batch)
        assert ours == pytest.approx(theirs, rel=LOSS_TOLERANCE), f"step {number}"
    end = split.adapter()
    check_close(end, unsplit.unsplit.adapter(), ADAPTER_TOLERANCE)
    assert min(float((end[name] - start[name]).abs().max()) for name in start) > 1e-3
    unsplit.unsplit.copy(end)
    check_gradients(split, unsplit.unsplit, batches[0])


def check_gradients(split: SplitTraining, unsplit: Unsplit, batch: list[Encoded]) -> None:
    split.learn(Packed.of(batch))
    unsplit.loss(batch).backward()
    ours = {name: p.grad for one in split.adapters for name, p in one.parameters().items()}
    ours = {trained_name(name): gradient for name, gradient in ours.items()}
    theirs = {name: weight.grad for name, weight in unsplit.adapter().items()}
    check_close(ours, theirs, GRADIENT_TOLERANCE)


def batches(count: int = STEPS, size: int = 3) -> list[list[Encoded]]:
    return [samples(size, seed) for seed in range(count)]


@pytest.mark.parametrize(("family", "config"), MODELS.values(), ids=MODELS)
def test_each_family_learns_as_the_unsplit_model(
    make_model: MakeModel, family: str, config: dict[str, Any]
) -> None:
    settings = TrainingSettings(optimizer=FAST)
    split, unsplit = pair(make_model(family, **config), Cut(1, 1), settings)
    check_equal(split, unsplit, batches())


@pytest.mark.parametrize("cut", [Cut(0, 0), Cut(0, 2), Cut(2, 0), Cut(1, 2)], ids=str)
def test_every_kind_of_cut_learns_as_the_unsplit_model(tiny_llama: Path, cut: Cut) -> None:
    # Not seed 0: there the first gradient of one weight is rounding alone, and AdamW makes a whole
    # step of it.
    split, unsplit = pair(tiny_llama, cut, TrainingSettings(optimizer=FAST, seed=1))
    check_equal(split, unsplit, batches())


@pytest.mark.parametrize(
    "parts",
    [{Part.HEAD}, {Part.TRUNK}, {Part.TAIL}, {Part.HEAD, Part.TAIL}, {Part.TRUNK, Part.TAIL}],
    ids=lambda parts: "+".join(sorted(parts)),
)
def test_any_subset_of_the_parts_can_be_adapted(tiny_llama: Path, parts: set[Part]) -> None:
    settings = TrainingSettings(parts=frozenset(parts), optimizer=FAST)
    split, unsplit = pair(tiny_llama, Cut(1, 1), settings)
    check_equal(split, unsplit, batches(3))


@pytest.mark.parametrize(
    "lora",
    [
        LoraSettings(rank=4, alpha=32, targets=("q_proj", "up_proj", "down_proj", "gate_proj")),
        LoraSettings(rslora=True),
    ],
    ids=["other targets", "rank-stabilised"],
)
def test_each_kind_of_lora_learns_as_the_unsplit_model(
    tiny_llama: Path, lora: LoraSettings
) -> None:
    settings = TrainingSettings(lora=lora, optimizer=FAST)
    split, unsplit = pair(tiny_llama, Cut(1, 1), settings)
    check_equal(split, unsplit, batches())


def test_dora_at_head_and_tail_learns_as_the_unsplit_model(tiny_llama: Path) -> None:
    ends = frozenset({Part.HEAD, Part.TAIL})
    settings = TrainingSettings(lora=LoraSettings(dora=True), parts=ends, optimizer=FAST)
    split, unsplit = pair(tiny_llama, Cut(1, 1), settings)
    check_equal(split, unsplit, batches())


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [(Schedule.CONSTANT, None), (Schedule.LINEAR, 8), (Schedule.COSINE, 8)],
    ids=["constant", "linear", "cosine"],
)
def test_schedules_with_warm_up_and_weight_decay_are_those_of_transformers(
    tiny_llama: Path, schedule: Schedule, steps: int | None
) -> None:
    optimizer = OptimizerSettings(1e-2, 0.1, schedule, warmup_steps=2, total_steps=steps)
    split, unsplit = pair(tiny_llama, Cut(1, 1), TrainingSettings(optimizer=optimizer))
    check_equal(split, unsplit, batches(7))


def test_clipping_is_by_the_norm_over_all_parts(tiny_llama: Path) -> None:
    # Given a limit that every step exceeds, and that no part alone would measure right.
    max_norm = 0.05
    split, unsplit = pair(tiny_llama, Cut(1, 1), TrainingSettings(optimizer=FAST), max_norm)
    # When both learn.
    check_equal(split, unsplit, batches())
    # Then clipping was at work.
    unsplit.step(batches()[0])
    assert unsplit.norm > 2 * max_norm


def test_accumulated_batches_are_one_batch(tiny_llama: Path) -> None:
    split, unsplit = pair(tiny_llama, Cut(1, 1), TrainingSettings(optimizer=FAST))
    for seed in range(STEPS):
        batch = samples(6, seed)
        ours = split.step(batch[:1], batch[1:3], batch[3:])
        assert ours == pytest.approx(unsplit.step(batch), rel=LOSS_TOLERANCE)
    check_close(split.adapter(), unsplit.unsplit.adapter(), ADAPTER_TOLERANCE)


def test_packed_samples_do_not_see_each_other(tiny_llama: Path) -> None:
    split = SplitTraining.load(tiny_llama, Cut(1, 1), TrainingSettings())
    both = samples(2)
    packed = [Packed.of([one]) for one in both]
    apart = [split.learn(one) * one.answer_tokens for one in packed]
    together = split.learn(Packed.of(both))
    assert together == pytest.approx(
        sum(apart) / sum(one.answer_tokens for one in packed), rel=1e-6
    )


def test_passes_of_several_batches_may_be_under_way(tiny_llama: Path) -> None:
    # Given the forward passes of two batches, whose gradients come in the other order.
    split, unsplit = pair(tiny_llama, Cut(1, 1), TrainingSettings())
    packed = {seed: Packed.of(samples(2, seed)) for seed in range(2)}
    total = sum(one.answer_tokens for one in packed.values())
    outputs = {}
    for ticket, one in packed.items():
        states = split.head.forward(ticket, one.ids, one.batch)
        outputs[ticket] = finish(split.trunk.forward(ticket, states, adapted(one.batch)))
    # When they come.
    for ticket, one in reversed(packed.items()):
        learned = split.tail.learn(outputs[ticket], one.batch, one.labels, answer_tokens=total)
        assert learned.gradient is not None
        gradient = finish(split.trunk.backward(ticket, learned.gradient))
        split.head.backward(ticket, gradient)
    # Then the gradients are those of one batch.
    unsplit.unsplit.loss([*samples(2, 0), *samples(2, 1)]).backward()
    ours = {
        trained_name(name): p.grad for one in split.adapters for name, p in one.parameters().items()
    }
    theirs = {name: weight.grad for name, weight in unsplit.unsplit.adapter().items()}
    assert all(ours[n] is not None for n in theirs if "lora_B" in n)
    check_close(
        {n: g for n, g in ours.items() if "lora_B" in n},
        {n: g for n, g in theirs.items() if "lora_B" in n},
        GRADIENT_TOLERANCE,
    )


def test_noise_on_the_states_passes_the_gradient_straight_through(tiny_llama: Path) -> None:
    # Given states that the caller changes between head and trunk.
    split = SplitTraining.load(tiny_llama, Cut(1, 1), TrainingSettings())
    one = Packed.of(samples(2))
    states = split.head.forward("", one.ids, one.batch)
    assert not states.requires_grad
    noised = states + 0.1
    # When the gradient by the noised states comes back, then the head takes it as it is.
    outputs = finish(split.trunk.forward("", noised, adapted(one.batch)))
    learned = split.tail.learn(outputs, one.batch, one.labels)
    assert learned.gradient is not None
    gradient = finish(split.trunk.backward("", learned.gradient))
    assert gradient.shape == states.shape
    split.head.backward("", gradient)
    assert split.head.adapter.squared_norm() > 0.0
