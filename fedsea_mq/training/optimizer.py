"""AdamW over one adapter of one part, its schedule, and clipping by the norm over all parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final, cast

import torch
from torch import nn

from fedsea_mq.errors import CheckpointError, TrainingDiverged
from fedsea_mq.training.settings import OptimizerSettings

_MOMENTS: Final = ("exp_avg", "exp_avg_sq", "step")


def clip_factor(squared_norms: Iterable[float], max_norm: float) -> float:
    """What to multiply all gradients by, so that their norm over all parts is at most `max_norm`.

    Each part tells the square of its own norm. The rule is that of torch's `clip_grad_norm_`.

    Raises:
        TrainingDiverged: a norm is not a finite number.
    """
    norm = math.sqrt(math.fsum(squared_norms))
    if not math.isfinite(norm):
        raise TrainingDiverged("the gradients' norm is not a finite number")
    return min(1.0, max_norm / (norm + 1e-6))


class AdapterOptimizer:
    """Steps one adapter's weights, which are given by name."""

    def __init__(self, weights: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> None:
        self.steps = 0
        self._weights = dict(weights)
        self._rate = settings.learning_rate
        self._adamw = None
        if self._weights:
            self._adamw = torch.optim.AdamW(
                self._weights.values(),
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                fused=True,
            )
            self._factor = _schedule(self._adamw, settings)

    def squared_norm(self) -> float:
        """Of the gradients since the last step; 0 where there are none."""
        gradients = [w.grad for w in self._weights.values() if w.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) ** 2

    def step(self, factor: float) -> None:
        """Multiply the gradients by the factor of `clip_factor`, step, and forget them.

        Raises:
            TrainingDiverged: a gradient is not a finite number; the weights are as before.
        """
        if not math.isfinite(self.squared_norm()):
            self.forget()
            raise TrainingDiverged("a gradient is not a finite number: the step is left out")
        if self._adamw is not None:
            for weight in self._weights.values():
                if weight.grad is not None and factor < 1.0:
                    weight.grad.mul_(factor)
            for group in self._adamw.param_groups:
                group["lr"] = self._rate * self._factor(self.steps)
            self._adamw.step()
        self.steps += 1
        self.forget()

    def forget(self) -> None:
        """Let go of the gradients since the last step."""
        for weight in self._weights.values():
            weight.grad = None

    @property
    def between_steps(self) -> bool:
        """Whether no gradient has come since the last step."""
        return all(weight.grad is None for weight in self._weights.values())

    def moments(self) -> dict[str, torch.Tensor]:
        """AdamW's state as `exp_avg.NAME` and so on; empty before the first step."""
        if self._adamw is None:
            return {}
        return {
            f"{kind}.{name}": cast(torch.Tensor, self._adamw.state[weight][kind])
            for name, weight in self._weights.items()
            if weight in self._adamw.state
            for kind in _MOMENTS
        }

    def restore(self, steps: int, moments: Mapping[str, torch.Tensor]) -> None:
        """Go on as the optimiser that had these.

        Raises:
            CheckpointError: moments of other weights.
        """
        fresh: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
        left = dict(moments)
        for name, weight in self._weights.items():
            found = {kind: left.pop(f"{kind}.{name}", None) for kind in _MOMENTS}
            if all(tensor is None for tensor in found.values()):
                continue
            fresh[weight] = {kind: _moment(name, kind, found[kind], weight) for kind in _MOMENTS}
        if left:
            raise CheckpointError(f"optimiser state of no weight here, first {min(left)}")
        if self._adamw is not None:
            self._adamw.state.clear()
            self._adamw.state.update(fresh)
        self.steps = steps
        self.forget()


def _moment(
    name: str, kind: str, tensor: torch.Tensor | None, weight: nn.Parameter
) -> torch.Tensor:
    shape = torch.Size() if kind == "step" else weight.shape
    if tensor is None or tensor.shape != shape:
        raise CheckpointError(f"optimiser state {kind} of {name} is missing or of another shape")
    return tensor.to(weight.device, torch.float32, copy=True)


def _schedule(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings
) -> Callable[[int], float]:
    """The learning rate's factor by the number of steps done, as transformers defines it."""
    from transformers import get_scheduler

    scheduler = get_scheduler(
        settings.schedule.value, optimizer, settings.warmup_steps, settings.total_steps
    )
    (factor,) = scheduler.lr_lambdas
    return cast(Callable[[int], float], factor)
