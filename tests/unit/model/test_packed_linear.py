"""Packed layers multiply as plain bf16 ones do, and say when they cannot pack."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsea_mq.model import packed_linear
from fedsea_mq.model.packed_linear import PackedLinear


def layer(*, bias: bool) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(48, 80, bias=bias)


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def packs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the operators, and as on a build of torch without them."""
    if not request.param:
        monkeypatch.setattr(packed_linear, "can_pack", lambda: False)
    return bool(request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_the_product_is_that_of_bf16_factors(packs: bool, bias: bool, rows: int) -> None:
    plain, inputs = layer(bias=bias), torch.randn(2, rows, 48)
    packed = PackedLinear(plain.weight, plain.bias)
    assert packed.packs == (packs and packed_linear.can_pack())
    rounded = [t.detach().bfloat16().float() for t in (inputs, plain.weight)]
    exact = rounded[0] @ rounded[1].T + (plain.bias.detach().bfloat16().float() if bias else 0)
    got = packed(inputs)
    assert got.dtype == torch.float32
    assert got.shape == (2, rows, 80)
    # The result itself is rounded to bf16's 8 bits.
    torch.testing.assert_close(got, exact, rtol=2**-7, atol=2**-7)


def test_it_knows_what_its_weights_weigh() -> None:
    assert PackedLinear(layer(bias=True).weight, layer(bias=True).bias).nbytes == 2 * (48 * 80 + 80)
    assert PackedLinear(layer(bias=False).weight, None).nbytes == 2 * 48 * 80
