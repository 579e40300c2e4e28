"""FedProx's gradient against autograd of the whole objective."""

from __future__ import annotations

import pytest
import torch

from fedsea_mq.errors import AdapterError
from fedsea_mq.training.proximal import add_proximal_gradient
from tests.unit.training.adapters import SHAPES, adapters, moved

MU = 0.3


def weights() -> dict[str, torch.Tensor]:
    return {n: t.double().requires_grad_() for n, t in moved(adapters(0), 1).items()}


def anchor() -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in adapters(0).items()}


def loss(of: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([(tensor**3).sum() for tensor in of.values()]).sum()


def test_it_is_the_gradient_of_loss_plus_proximal_term() -> None:
    whole, start = weights(), anchor()
    distance = torch.stack([((whole[n] - start[n]) ** 2).sum() for n in SHAPES]).sum()
    (loss(whole) + MU / 2 * distance).backward()
    parts = weights()
    loss(parts).backward()
    add_proximal_gradient(parts, start, MU)
    for name in SHAPES:
        torch.testing.assert_close(parts[name].grad, whole[name].grad, rtol=1e-12, atol=1e-12)


def test_a_parameter_without_a_gradient_gets_the_pull() -> None:
    parts, start = weights(), anchor()
    add_proximal_gradient(parts, start, MU)
    for name in SHAPES:
        assert parts[name].grad is not None
        torch.testing.assert_close(parts[name].grad, MU * (parts[name] - start[name]).detach())


def test_zero_changes_no_bit() -> None:
    parts = weights()
    loss(parts).backward()
    before = {name: part.grad.clone() for name, part in parts.items() if part.grad is not None}
    add_proximal_gradient(parts, anchor(), 0.0)
    assert all(torch.equal(before[name], parts[name].grad) for name in SHAPES)


def test_an_anchor_of_other_adapters_is_refused() -> None:
    with pytest.raises(AdapterError):
        add_proximal_gradient(weights(), {"w": torch.zeros(1)}, MU)
