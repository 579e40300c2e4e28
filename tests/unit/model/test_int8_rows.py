"""Rows in int8: how far off an element is, and that both ways to round give the same bits."""

from __future__ import annotations

import math

import pytest
import torch

from fedsea_mq.model import int8_rows
from fedsea_mq.model.int8_rows import plain_quantise_rows, quantise_rows


def draw(*shape: int) -> torch.Tensor:
    """Rows of very different sizes."""
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
    return rows * torch.logspace(-8, 8, shape[-2])[:, None]


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With numba, and as where it has no wheel."""
    if not request.param:
        monkeypatch.setattr(int8_rows, "AVAILABLE", False)
    return bool(request.param)


@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (3, 7, 48), (0, 8)], ids=str)
def test_an_element_is_off_by_half_a_scale_at_most(compiled: bool, shape: tuple[int, ...]) -> None:
    rows = draw(*shape)
    quantised, scales = quantise_rows(rows)
    assert quantised.dtype == torch.int8
    assert quantised.shape == shape
    assert scales.shape == (*shape[:-1], 1)
    off = (rows - quantised * scales).abs()
    assert bool((off <= scales * 0.5001).all())
    assert bool((quantised.abs().amax(-1) == 127).all())


def test_both_ways_give_the_same_bits() -> None:
    halves = torch.arange(-127, 128) + 0.5  # round half to even
    rows = torch.cat([draw(40, 256), torch.zeros(1, 256), torch.cat([halves, halves[:1]])[None]])
    for mine, plain in zip(quantise_rows(rows), plain_quantise_rows(rows), strict=True):
        assert torch.equal(mine, plain)


def test_both_ways_give_the_same_bits_where_many_are_near_a_half() -> None:
    rows = draw(400, 256).bfloat16().float()  # few digits, so products often end in a half
    for mine, plain in zip(quantise_rows(rows), plain_quantise_rows(rows), strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.skipif(not int8_rows.AVAILABLE, reason="numba is not installed")
@pytest.mark.parametrize("loop", ["quantise_row", "_quantise_rows"])
def test_what_calls_it_cannot_have_it_compiled_otherwise(loop: str) -> None:
    """Attention takes liberties; compiled first, it once had the quantising loop take them, too."""
    assert getattr(int8_rows, loop).targetoptions["fastmath"] is False


def test_rows_that_lie_apart_in_memory_are_those_that_they_are() -> None:
    rows = draw(16, 24)
    for mine, apart in zip(
        quantise_rows(rows), quantise_rows(rows.t().contiguous().t()), strict=True
    ):
        assert torch.equal(mine, apart)


def test_what_is_no_number_stays_visible(compiled: bool) -> None:
    rows = torch.ones(3, 8)
    rows[0, 3], rows[1, 3] = math.nan, math.inf
    _, scales = quantise_rows(rows)
    assert [math.isfinite(scale) for scale in scales[:, 0]] == [False, False, True]
