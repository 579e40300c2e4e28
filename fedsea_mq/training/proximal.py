"""FedProx on the client: stay near the round's adapters (Li et al., MLSys 2020, equation 2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedsea_mq.errors import AdapterError
from fedsea_mq.model.lora import Adapter
from fedsea_mq.training.adapter_layout import AdapterLayout


@torch.no_grad()
def add_proximal_gradient(
    parameters: Mapping[str, torch.Tensor], anchor: Adapter, mu: float
) -> None:
    """Add the gradient of `mu / 2 * ||w - anchor||^2` to each parameter's `grad`.

    To be called after the backward pass, before gradients are clipped; with gradient accumulation
    once, before the optimiser's step. A parameter without a gradient gets this one.

    Raises:
        AdapterError: parameters and anchor are not of one layout.
    """
    if wrong := AdapterLayout.of_adapters(anchor).mismatch(parameters):
        raise AdapterError(wrong)
    for name, parameter in parameters.items():
        pull = mu * (parameter - anchor[name].to(parameter))
        parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)
