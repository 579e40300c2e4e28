"""int8 layers multiply as their rounded factors do, with the operators of torch and without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsea_mq.model import int8_linear
from fedsea_mq.model.int8_linear import Int8Linear, can_pack_int8
from fedsea_mq.model.int8_rows import quantise_rows


def layer(*, bias: bool, inputs: int = 48) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(inputs, 80, bias=bias)


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def packs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the operators, and as on a build of torch without them."""
    if not request.param:
        monkeypatch.setattr(int8_linear, "can_pack_int8", lambda: False)
    return bool(request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3, 64])
def test_the_product_is_that_of_int8_factors(packs: bool, bias: bool, rows: int) -> None:
    plain, inputs = layer(bias=bias), torch.randn(2, rows, 48)
    made = Int8Linear(plain.weight, plain.bias)
    assert made.packs == (packs and can_pack_int8())
    factors = [
        quantised.double() * scales.double()
        for quantised, scales in map(quantise_rows, (inputs, plain.weight.detach()))
    ]
    exact = factors[0] @ factors[1].T + (plain.bias.detach().double() if bias else 0)
    got = made(inputs)
    assert got.dtype == torch.float32
    assert got.shape == (2, rows, 80)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inputs", [1, 48, 1408])
def test_both_products_are_the_same(monkeypatch: pytest.MonkeyPatch, inputs: int) -> None:
    plain, rows = layer(bias=True, inputs=inputs), torch.randn(17, inputs)
    packed = Int8Linear(plain.weight, plain.bias)
    monkeypatch.setattr(int8_linear, "can_pack_int8", lambda: False)
    torch.testing.assert_close(packed(rows), Int8Linear(plain.weight, plain.bias)(rows))


def test_the_largest_factors_do_not_saturate(packs: bool) -> None:
    made = Int8Linear(torch.full((4, 512), 3.0), None)
    torch.testing.assert_close(made(torch.full((2, 512), -2.0)), torch.full((2, 4), -3072.0))


def test_a_row_is_computed_alike_alone_and_among_others(packs: bool) -> None:
    made, rows = Int8Linear(layer(bias=True).weight, None), torch.randn(40, 48)
    rows[1] *= 1000
    assert torch.equal(made(rows)[5:6], made(rows[5:6]))


def test_random_factors_lose_about_a_hundredth(packs: bool) -> None:
    plain, inputs = layer(bias=False, inputs=512), torch.randn(64, 512)
    exact = plain(inputs).detach()
    off = Int8Linear(plain.weight, None)(inputs) - exact
    assert 0.001 < float(off.norm() / exact.norm()) < 0.015


def test_it_knows_what_its_weights_weigh() -> None:
    with_bias = layer(bias=True)
    assert Int8Linear(with_bias.weight, with_bias.bias).nbytes == 48 * 80 + 4 * 80 + 4 * 80
    assert Int8Linear(with_bias.weight, None).nbytes == 48 * 80 + 4 * 80
