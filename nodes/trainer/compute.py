"""What the compute thread does for one batch on its way: states out, loss and gradients back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from fedsea_mq.errors import TrainingDiverged
from fedsea_mq.model.wire_gradients import decode_gradient, encode_gradient
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.privacy.noise import clip_gradient, fresh_noise
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.averaging import Personal
from fedsea_mq.training.batch import Packed
from fedsea_mq.training.optimizer import clip_factor
from fedsea_mq.training.proximal import add_proximal_gradient
from fedsea_mq.training.trained_adapter import TrainedAdapter
from nodes.trainer.parts import TrainedParts

Micro = tuple[int, int]
# What a frame can say.
_MAX_SQUARED_NORM: Final = 1e12


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A batch of step `ticket[0]`, its number `ticket[1]`."""

    ticket: Micro
    examples: Sequence[Encoded]
    packed: Packed

    @classmethod
    def of(cls, ticket: Micro, examples: Sequence[Encoded]) -> MicroBatch:
        """Pack examples. Raises `BatchMismatch` if there are none."""
        return cls(ticket, examples, Packed.of(examples))


class Compute:
    """Every call is for the compute thread.

    `gradient_noise` is in RMS of the gradient that it is added to, `proximal` FedProx's mu.
    """

    def __init__(
        self, parts: TrainedParts, personal: Personal, *, gradient_noise: float, proximal: float
    ) -> None:
        self.parts = parts
        self._personal = personal
        self._gradient_noise = gradient_noise
        self._proximal = proximal
        self._anchor: Mapping[str, torch.Tensor] = {}

    def begin(self) -> None:
        """Remember the shared adapters as those that FedProx holds on to."""
        if self._proximal:
            self._anchor = {name: w.detach().clone() for name, w in self._shared().items()}

    @property
    def _trained(self) -> tuple[TrainedAdapter, ...]:
        return (self.parts.head.adapter, self.parts.tail.adapter)

    def send_states(self, micro: MicroBatch) -> list[bytes]:
        """The head's states, clipped and noised, as a payload; the pass waits for its gradient."""
        ids = micro.packed.ids.to(self.parts.settings.device)
        states = self.parts.head.forward(micro.ticket, ids, micro.packed.batch)
        return self._noised(states, micro)

    def send_states_to_evaluate(self, micro: MicroBatch) -> list[bytes]:
        """The same without dropout, and without a pass that waits."""
        ids = micro.packed.ids.to(self.parts.settings.device)
        return self._noised(self.parts.head.evaluate(ids, micro.packed.batch), micro)

    def _noised(self, states: torch.Tensor, micro: MicroBatch) -> list[bytes]:
        noise = self.parts.noise
        # A chain a sequence: the noise is that of the same tokens in every epoch.
        digests = [digest for one in micro.examples for digest in noise.chain().extend(0, one.ids)]
        return encode_states(noise.add(states, digests), self.parts.spec.dtype)

    def learn(
        self, micro: MicroBatch, outputs: Sequence[bytes], answer_tokens: int
    ) -> tuple[float, int, list[bytes]]:
        """The loss's share of the step, and its gradient by the outputs: exponent and payload."""
        states = self._states(micro, outputs)
        packed = micro.packed
        learned = self.parts.tail.learn(
            states, packed.batch, packed.labels, answer_tokens=answer_tokens
        )
        assert learned.gradient is not None
        gradient = learned.gradient
        if self._gradient_noise:
            rms = float(gradient.float().square().mean().sqrt())
            gradient = gradient + fresh_noise(gradient, self._gradient_noise * rms)
        if not bool(gradient.isfinite().all()):
            raise TrainingDiverged("a gradient is not a finite number")
        return learned.loss, *encode_gradient(gradient, self.parts.spec.dtype)

    def evaluate(self, micro: MicroBatch, outputs: Sequence[bytes]) -> float:
        """The loss summed over the batch's answer tokens."""
        packed = micro.packed
        return self.parts.tail.evaluate(self._states(micro, outputs), packed.batch, packed.labels)

    def _states(self, micro: MicroBatch, outputs: Sequence[bytes]) -> torch.Tensor:
        spec = self.parts.spec
        states = decode_states(outputs, micro.packed.batch.total, spec, torch.float32)
        if not bool(states.isfinite().all()):
            raise TrainingDiverged("the trunk's outputs are not finite numbers")
        return states.to(self.parts.settings.device)

    def take_gradient(self, micro: MicroBatch, exponent: int, gradient: Sequence[bytes]) -> None:
        """Add to the head's gradients what the trunk gave back."""
        total, spec = micro.packed.batch.total, self.parts.spec
        came = decode_gradient(gradient, exponent, total, spec)
        if not bool(came.isfinite().all()):
            raise TrainingDiverged("the trunk's gradient is not of finite numbers")
        head, clip = self.parts.head, self.parts.noise.clip
        if not head.wants_gradient:
            return
        if clip is not None:
            # The trunk's is by the states that it was sent.
            states = head.states(micro.ticket)
            came = clip_gradient(came.to(states), states, clip)
        head.backward(micro.ticket, came)

    def finish_gradients(self) -> float:
        """Add FedProx's pull, once a step; the squared norm of head's and tail's gradients then.

        Raises:
            TrainingDiverged: it is not a number that can be told.
        """
        if self._anchor:
            add_proximal_gradient(self._shared(), self._anchor, self._proximal)
        total = sum(part.squared_norm() for part in self._trained)
        if not total <= _MAX_SQUARED_NORM:
            raise TrainingDiverged("the gradients' norm is not a finite number, or beyond 1e6")
        return total

    def step(self, squared_norms: Sequence[float], max_norm: float) -> None:
        """The optimiser steps of head and tail, clipped by the norm over all parts."""
        factor = clip_factor(squared_norms, max_norm)
        for part in self._trained:
            part.step(factor)

    def _shared(self) -> dict[str, torch.Tensor]:
        # peft's parameters are named as its files, but for the adapter's own name.
        return {
            name: weight
            for part in self._trained
            for name, weight in part.parameters().items()
            if not self._personal.keeps(name.replace(".default.", "."))
        }
