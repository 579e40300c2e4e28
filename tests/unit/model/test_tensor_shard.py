"""Shares of a tensor are disjoint, make up the whole, and fit a narrower model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import UnevenShards
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.parts import load_trunk
from fedsea_mq.model.tensor_shard import WHOLE, TensorShard

BOTH = [TensorShard(rank, 2) for rank in range(2)]
BLOCK = "model.layers.1"
# The dimension that is cut.
CUT = {
    "self_attn.q_proj.weight": 0,
    "self_attn.k_proj.bias": 0,
    "mlp.gate_proj.weight": 0,
    "self_attn.o_proj.weight": 1,
    "mlp.down_proj.weight": 1,
    "self_attn.v_proj.lora_B.weight": 0,
    "mlp.down_proj.lora_A.weight": 1,
}
LEFT_WHOLE = [
    "self_attn.o_proj.bias",
    "self_attn.q_norm.weight",
    "input_layernorm.weight",
    "self_attn.q_proj.lora_A.weight",
    "self_attn.o_proj.lora_B.weight",
]


@pytest.mark.parametrize("name", CUT)
def test_shares_make_up_the_whole(name: str) -> None:
    whole = torch.arange(48.0).view(8, 6) if not name.endswith("bias") else torch.arange(8.0)
    shares = [shard.of(f"{BLOCK}.{name}", whole) for shard in BOTH]
    assert torch.equal(torch.cat(shares, dim=CUT[name]), whole)
    for shard, share in zip(BOTH, shares, strict=True):
        assert shard.whole_shape(f"{BLOCK}.{name}", tuple(share.shape)) == tuple(whole.shape)
        assert share.untyped_storage().nbytes() == whole.nbytes // 2


@pytest.mark.parametrize("name", LEFT_WHOLE)
def test_what_is_not_cut_is_whole_on_every_rank(name: str) -> None:
    whole = torch.arange(12.0).view(3, 4)
    assert all(torch.equal(shard.of(f"{BLOCK}.{name}", whole), whole) for shard in BOTH)


def test_the_bias_of_a_sum_is_added_once() -> None:
    assert [shard.leaves_out(f"{BLOCK}.mlp.down_proj.bias") for shard in BOTH] == [False, True]
    assert not any(shard.leaves_out(f"{BLOCK}.self_attn.q_proj.bias") for shard in BOTH)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_each_rank_reads_its_share_of_the_blocks(
    make_model: Callable[..., Path], family: str
) -> None:
    checkpoint = Checkpoint.open(str(make_model(family)))
    whole, *shares = (
        dict(load_trunk(checkpoint, Cut(1, 1), Numerics(), shard=shard).layers.named_parameters())
        for shard in (WHOLE, *BOTH)
    )
    for shard, share in zip(BOTH, shares, strict=True):
        assert share.keys() == whole.keys()
        assert all(torch.equal(share[name], shard.of(name, whole[name])) for name in whole)


@pytest.mark.parametrize(
    ("ranks", "said"), [(4, "num_key_value_heads is 2"), (3, "num_attention_heads is 4")]
)
def test_heads_that_cannot_be_dealt_out_are_refused(
    tiny_llama: Path, ranks: int, said: str
) -> None:
    checkpoint = Checkpoint.open(str(tiny_llama))
    with pytest.raises(UnevenShards, match=said):
        load_trunk(checkpoint, Cut(1, 1), Numerics(), shard=TensorShard(0, ranks))
