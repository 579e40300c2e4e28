"""Sessions with different adapters in one step of one trunk, over caches, plain and packed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import nn

from fedsea_mq.errors import AdapterError
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.grouped_lora import GroupedLora, GroupedLoraLinear, Segment
from fedsea_mq.model.lora import LoraSettings, NamedBlocks
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import BlockRun, load_trunk, weight_bytes

FP32 = Numerics()
LORA = LoraSettings(rank=4, targets=("q_proj", "v_proj", "o_proj", "up_proj"))
COUNTS = {"formal": 9, None: 5, "short": 12}
# Another rank, and targets that are partly the same.
OTHER = LoraSettings(rank=2, alpha=3, targets=("v_proj", "k_proj", "down_proj"), rslora=True)
SETTINGS = {"formal": LORA, "short": OTHER}


def adapter(
    grouped: GroupedLora, seed: int, dtype: torch.dtype = torch.float32, lora: LoraSettings = LORA
) -> dict:
    generator = torch.Generator().manual_seed(seed)
    shapes = grouped.shapes(lora.rank, lora.targets)
    return {n: torch.randn(s, generator=generator).mul(0.1).to(dtype) for n, s in shapes.items()}


def trunk(
    folder: Path, numerics: Numerics = FP32, targets: Iterable[str] = LORA.targets
) -> tuple[BlockRun, GroupedLora]:
    run = load_trunk(Checkpoint.open(str(folder)), Cut(1, 1), numerics)
    return run, GroupedLora(NamedBlocks.of(run), sorted(targets))


@torch.inference_mode()
def merged(folder: Path, tensors: dict | None, lora: LoraSettings = LORA) -> BlockRun:
    """A plain trunk with an adapter in its weights: the oracle."""
    run = load_trunk(Checkpoint.open(str(folder)), Cut(1, 1), Numerics())
    named = NamedBlocks.of(run)
    if tensors is not None:
        for name, layer in named.targets(lora.targets).items():
            a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            layer.weight += lora.scaling * b.float() @ a.float()
    return run


@pytest.mark.parametrize(
    ("numerics", "tolerance"),
    [(FP32, 1e-5), (Numerics("bf16"), 5e-2), (Numerics(int8_weights=True), 0.15)],
    ids=["plain", "packed bf16", "int8"],
)
@torch.inference_mode()
def test_each_session_of_a_step_is_served_with_its_own_adapter(
    tiny_llama: Path, numerics: Numerics, tolerance: float
) -> None:
    # Given one trunk that holds two adapters, and sessions with one, the other and none.
    targets = {target for lora in SETTINGS.values() for target in lora.targets}
    run, grouped = trunk(tiny_llama, numerics, targets)
    tensors = {
        name: adapter(grouped, seed, numerics.weights, lora)
        for seed, (name, lora) in enumerate(SETTINGS.items())
    }
    for name, one in tensors.items():
        grouped.add(name, one, SETTINGS[name])
    kind = numerics.linear or nn.Linear
    assert all(isinstance(layer.base, kind) for layer in layers(run))
    caches = {name: run.new_cache(32) for name in COUNTS}
    alone = {
        name: merged(tiny_llama, tensors.get(name), SETTINGS.get(name, LORA)) for name in COUNTS
    }
    alone_caches = {name: one.new_cache(32) for name, one in alone.items()}
    # When their prompts, then a token each, go through in one step.
    torch.manual_seed(0)
    start = dict.fromkeys(COUNTS, 0)
    for counts in (COUNTS, dict.fromkeys(COUNTS, 1)):
        states = {name: torch.randn(count, 64) for name, count in counts.items()}
        spans = [Span(caches[name], start[name], count) for name, count in counts.items()]
        with grouped.told([Segment(name, count) for name, count in counts.items()]):
            together = run(torch.cat(list(states.values())), spans)
        # Then each session's outputs are those of a trunk with its adapter merged.
        for name, ours in zip(counts, together.split(list(counts.values())), strict=True):
            span = Span(alone_caches[name], start[name], counts[name])
            theirs = alone[name](states[name], [span])
            assert distance(ours, theirs) <= tolerance
            if name is not None and not start[name]:
                # And not those of the trunk without one.
                plain = alone[None](states[name], [Span(alone[None].new_cache(32), 0, len(ours))])
                assert distance(ours, plain) > 0.2
        start = dict(COUNTS)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def layers(run: BlockRun) -> list[GroupedLoraLinear]:
    return [module for module in run.modules() if isinstance(module, GroupedLoraLinear)]


@torch.inference_mode()
def test_without_adapters_nothing_changes(tiny_llama: Path) -> None:
    run, grouped = trunk(tiny_llama)
    plain = merged(tiny_llama, None)
    grouped.add("formal", adapter(grouped, 1), LORA)
    states = torch.randn(7, 64)
    ours = run(states, [Span(run.new_cache(8), 0, 7)])
    assert torch.equal(ours, plain(states, [Span(plain.new_cache(8), 0, 7)]))


def test_adapters_cost_themselves_and_no_copy_of_the_weights(tiny_llama: Path) -> None:
    run, grouped = trunk(tiny_llama)
    before = weight_bytes(run)
    held = {f"adapter {number}": adapter(grouped, number) for number in range(5)}
    for name, tensors in held.items():
        grouped.add(name, tensors, LORA)
    assert weight_bytes(run) == before == weight_bytes(merged(tiny_llama, None))
    lies = {t.data_ptr() for tensors in held.values() for t in tensors.values()}
    pairs = [pair for layer in layers(run) for pair in layer.adapters.values()]
    assert {tensor.data_ptr() for pair in pairs for tensor in (pair.a, pair.b)} == lies


def test_what_does_not_fit_is_refused(tiny_llama: Path) -> None:
    _, grouped = trunk(tiny_llama)
    good = adapter(grouped, 1)
    grouped.add("good", good, LORA)
    first = min(good)
    for bad, settings in [
        (good, LoraSettings(rank=8, targets=LORA.targets)),
        (good, LoraSettings(rank=4, targets=LORA.targets, dora=True)),
        (good, LoraSettings(rank=4)),
        ({name: tensor for name, tensor in good.items() if name != first}, LORA),
        (good | {first: torch.full_like(good[first], torch.nan)}, LORA),
    ]:
        with pytest.raises(AdapterError):
            grouped.add("bad", bad, settings)
    with pytest.raises(AdapterError):
        grouped.add("good", good, LORA)
    with pytest.raises(AdapterError), grouped.told([Segment("bad", 3)]):
        pass
    grouped.remove("good")
    with pytest.raises(AdapterError), grouped.told([Segment("good", 3)]):
        pass
