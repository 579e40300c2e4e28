"""Where the model is cut, and which tensor goes where."""

from __future__ import annotations

import pytest

from fedsea_mq.errors import IllegalCut
from fedsea_mq.model.partition import Cut, Part, legal_cuts, part_of


@pytest.mark.parametrize("total", [1, 2, 5, 12])
def test_a_legal_cut_gives_each_block_to_exactly_one_part(total: int) -> None:
    for cut in legal_cuts(total):
        runs = [cut.blocks(part, total) for part in Part]
        assert [block for run in runs for block in run] == list(range(total))
        assert len(runs[1]) >= 1


def test_every_cut_that_leaves_a_trunk_is_legal() -> None:
    assert len(legal_cuts(4)) == 10
    assert legal_cuts(1) == [Cut(0, 0)]


@pytest.mark.parametrize("cut", [Cut(2, 2), Cut(4, 0), Cut(0, 4), Cut(-1, 1), Cut(1, -1)])
def test_given_no_trunk_or_a_negative_count_then_the_cut_is_illegal(cut: Cut) -> None:
    with pytest.raises(IllegalCut, match=f"cut {cut} of a model of 4 blocks".replace("+", r"\+")):
        cut.blocks(Part.TRUNK, 4)


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("model.embed_tokens.weight", Part.HEAD),
        ("model.layers.0.mlp.up_proj.weight", Part.HEAD),
        ("model.layers.1.mlp.up_proj.weight", Part.TRUNK),
        ("model.layers.9.input_layernorm.weight", Part.TRUNK),
        ("model.layers.10.self_attn.q_proj.bias", Part.TAIL),
        ("model.layers.11.self_attn.q_proj.weight", Part.TAIL),
        ("model.norm.weight", Part.TAIL),
        ("lm_head.weight", Part.TAIL),
        ("model.layers.12.mlp.up_proj.weight", None),
        ("model.rotary_emb.inv_freq", None),
        ("model.layers.x.weight", None),
    ],
)
def test_a_tensor_belongs_to_the_part_that_computes_with_it(tensor: str, part: Part | None) -> None:
    assert part_of(tensor, Cut(1, 2), 12) is part
