"""Two ranks compute what one does, over half the tensors and half the cache each."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import AdapterError, RankLost
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.held_adapters import hold_adapters, open_adapters
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import load_client, load_trunk, weight_bytes
from fedsea_mq.tensor_parallel.step_plan import receive_plan
from tests.adapters import make_adapter
from tests.unit.model.split import EXACT, Split, oracle_logits, prompt, unsplit
from tests.unit.tensor_parallel.two_ranks import groups, two_ranks

CUT = Cut(1, 1)
EQUAL = 1e-4
BIASED = {"attention_bias": True, "mlp_bias": True}
# Of the logits, relative to one rank in the same numbers: what rounding halves apart changes.
# Measured: 0.007, 0.026, 5e-7 and 0.027.
NEAR = {
    "bf16": (Numerics("bf16"), 0.015),
    "int8 weights": (Numerics(int8_weights=True), 0.04),
    "int8 KV": (Numerics(int8_kv=True), 1e-5),
    "int8 in bf16": (Numerics("bf16", int8_weights=True, int8_kv=True), 0.04),
}


def ragged_logits(split: Split) -> torch.Tensor:
    """Of three sessions in shared steps: one in chunks, one that goes back over a wrong draft."""
    long, short, single = (split.session(64) for _ in range(3))
    first = split.step([(short, prompt(9)[:4] + prompt(5, seed=7)), (long, prompt(40)[:24])])
    short.cached = 4
    rest = split.step([(long, prompt(40)[24:]), (single, prompt(1)), (short, prompt(9)[4:])])
    return torch.cat([first[1], rest[0], rest[1], first[0][:4], rest[2]])


def oracle(model: Path) -> torch.Tensor:
    whole = unsplit(model)
    return torch.cat([oracle_logits(whole, prompt(length)) for length in (40, 1, 9)])


def with_biases(model: Path, folder: Path) -> Path:
    """The same with biases where it has them: those of a new model are all 0."""
    whole = unsplit(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            if name.endswith("bias"):
                weight.normal_(generator=generator)
    whole.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "config"),
    [("llama", {}), ("llama", BIASED), ("mistral", {}), ("qwen2", {}), ("qwen3", {})],
)
def test_each_family_is_exact_in_fp32(
    make_model: Callable[..., Path], tmp_path: Path, family: str, config: dict[str, bool]
) -> None:
    model = with_biases(make_model(family, **config), tmp_path)
    head, tail = load_client(Checkpoint.open(str(model)), CUT, EXACT)
    with two_ranks(model, CUT, EXACT) as (leading, other):
        logits = ragged_logits(Split(head, leading, tail))
    assert other.ended == [None]
    assert float((logits - oracle(model)).abs().max()) <= EQUAL


@pytest.mark.parametrize("numbers", NEAR)
def test_in_other_numbers_two_ranks_are_near_to_one(tiny_llama: Path, numbers: str) -> None:
    numerics, bound = NEAR[numbers]
    head, tail = load_client(Checkpoint.open(str(tiny_llama)), CUT, EXACT)
    whole = load_trunk(Checkpoint.open(str(tiny_llama)), CUT, numerics)
    alone = ragged_logits(Split(head, whole, tail))
    with two_ranks(tiny_llama, CUT, numerics) as (leading, _):
        together = ragged_logits(Split(head, leading, tail))
    assert float((together - alone).norm() / alone.norm()) <= bound


def test_each_rank_holds_half_of_the_layers_and_half_of_the_cache(tiny_llama: Path) -> None:
    whole = load_trunk(Checkpoint.open(str(tiny_llama)), CUT, EXACT)
    norms = sum(one.nbytes for name, one in whole.named_parameters() if "norm" in name)
    with two_ranks(tiny_llama, CUT, EXACT) as (leading, other):
        half = (weight_bytes(whole) - norms) // 2 + norms
        assert weight_bytes(leading) == weight_bytes(other.share) == half
        for run in (leading, other.share):
            assert 2 * run.kv_shape.bytes_per_position == whole.kv_shape.bytes_per_position


LORAS = {
    "all": LoraSettings(4, targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")),
    "down": LoraSettings(2, 8, targets=("down_proj", "gate_proj"), rslora=True),
}


@pytest.fixture(scope="module")
def adapters(
    make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    model, folder = make_model("llama"), tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(model, folder / name, lora, seed=seed)
        for seed, (name, lora) in enumerate(LORAS.items())
    }


def test_sessions_with_different_adapters_share_the_steps_of_two_ranks(
    tiny_llama: Path, adapters: dict[str, Path]
) -> None:
    alone = load_trunk(Checkpoint.open(str(tiny_llama)), CUT, EXACT)
    hold_adapters(alone, open_adapters(adapters, 4))
    states = torch.randn(12, 64, generator=torch.Generator().manual_seed(1))
    with two_ranks(tiny_llama, CUT, EXACT, adapters) as (leading, _), torch.inference_mode():
        outputs = [
            run(
                states,
                [
                    Span(run.new_cache(8), 0, 4, adapter=adapter)
                    for adapter in (None, "all", "down")
                ],
            )
            for run in (alone, leading)
        ]
    assert float((outputs[0] - outputs[1]).abs().max()) <= EQUAL


def test_an_adapter_that_is_not_held_is_refused_before_anybody_is_told(tiny_llama: Path) -> None:
    states = torch.randn(1, 64)
    with two_ranks(tiny_llama, CUT, EXACT) as (leading, other), torch.inference_mode():
        with pytest.raises(AdapterError):
            leading(states, [Span(leading.new_cache(8), 0, 1, adapter="nobody's")])
        leading(states, [Span(leading.new_cache(8), 0, 1)])
    assert other.ended == [None]


def test_the_other_rank_frees_the_caches_that_the_first_lets_go_of(tiny_llama: Path) -> None:
    states = torch.randn(3, 64)
    with two_ranks(tiny_llama, CUT, EXACT) as (leading, other), torch.inference_mode():
        caches = [leading.new_cache(8) for _ in range(3)]
        leading(states, [Span(cache, 0, 1) for cache in caches])
        assert other.caches_held == 3
        # In a step of those that go on.
        kept = caches.pop()
        caches.clear()
        gc.collect()
        leading(states[:1], [Span(kept, 1, 1)])
        assert other.caches_held == 1
        # And where there is none.
        del kept
        gc.collect()
        leading.look_round()
        assert other.caches_held == 0


def test_a_rank_that_fails_in_a_step_is_lost_to_both(tiny_llama: Path) -> None:
    states = torch.randn(2, 64)
    with two_ranks(tiny_llama, CUT, EXACT) as (leading, other), torch.inference_mode():
        other.share.layers[1] = torch.nn.Identity()  # takes no such arguments
        with pytest.raises(RankLost):
            leading(states, [Span(leading.new_cache(8), 0, 2)])
        with pytest.raises(RankLost):
            leading.look_round()
    assert [type(error) for error in other.ended] == [RankLost]


def test_what_is_no_plan_is_refused_before_room_is_made_for_it() -> None:
    first, second = groups()
    sending = threading.Thread(target=first.broadcast, args=(torch.tensor([1 << 40, 0]),))
    sending.start()
    with pytest.raises(RankLost, match="no plan"):
        receive_plan(second)
    sending.join()


def test_a_rank_that_others_have_left_is_told_at_its_next_word() -> None:
    first, second = groups()
    first.close()
    with pytest.raises(RankLost):
        second.all_here()
    assert second.is_lost
