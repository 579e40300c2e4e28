"""A live training run whose trunk node is in this process, and keeps what it receives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Self

import torch

from fedsea_mq.cli.bench.clients_here import clients_here
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.load.plan import Link
from fedsea_mq.model.wire_gradients import decode_gradient
from fedsea_mq.model.wire_states import decode_states
from fedsea_mq.privacy.attacks.labels import GradientSeen
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.data_order import DataOrder
from fedsea_mq.training.sliced_blocks import Slices
from fedsea_mq.training.trunk_compute import TrunkCompute
from fedsea_mq.training.trunk_work import Answer, Outcome, RunBackward, RunForward, TakeStep, Work
from nodes.trainer import Examples
from nodes.trunk import TrunkNode
from nodes.trunk.engine import TrunkEngine

_NAME: Final = "curious"
_MEMBER: Final = "member"


class CuriousCompute(TrunkCompute):
    """Computes as `inner` does, and keeps the states and gradients of each sequence by step."""

    def __init__(self, inner: TrunkCompute) -> None:
        # All work is the other's: what the base class would hold is not held twice.
        self._inner = inner
        self.steps: list[list[GradientSeen]] = [[]]
        self._waiting: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def slices(self, work: Work) -> Slices[Outcome]:
        """See `TrunkCompute.slices`."""
        outcome = yield from self._inner.slices(work)
        match work:
            case RunForward(trains=True) if isinstance(outcome, dict):
                self._keep_forward(work, outcome)
            case RunBackward():
                self._keep_backward(work)
            case TakeStep():
                self.steps.append([])
        return outcome

    def _keep_forward(self, work: RunForward, answers: Mapping[str, Answer]) -> None:
        (piece,) = work.pieces  # there is one member
        received, outputs = (
            decode_states(payload, piece.positions, piece.spec, torch.float32)
            for payload in (piece.payload, answers[piece.member].payload)
        )
        self._waiting[work.number] = received, outputs

    def _keep_backward(self, work: RunBackward) -> None:
        (piece,) = work.pieces
        came = work.gradients[piece.member]
        gradient = decode_gradient(came.payload, came.exponent, piece.positions, piece.spec)
        parts = (*self._waiting.pop(work.number), gradient)
        apart = [torch.split(rows, list(piece.lengths)) for rows in parts]
        self.steps[-1] += [GradientSeen(*one) for one in zip(*apart, strict=True)]


class _CuriousEngine(TrunkEngine):
    """Has its node train with a `CuriousCompute`; the settings name a run."""

    compute: CuriousCompute

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        loaded = self.loaded
        assert loaded.training is not None
        self.compute = CuriousCompute(loaded.training)
        self._loaded = replace(loaded, training=self.compute)
        return self


@dataclass(frozen=True, slots=True)
class TaughtStep:
    """One optimiser step, `after` so many others: its sequences, and what they were of."""

    after: int
    seen: Sequence[GradientSeen]
    examples: Sequence[Encoded]


async def captured_training(
    settings: Settings, examples: Sequence[Encoded], steps: int
) -> list[TaughtStep]:
    """Have one member train on the examples for so many steps, through a real broker.

    Noise, LoRA and batches are as the settings say.
    """
    with TemporaryDirectory(prefix="fedsea-audit-") as folder:
        settings = _of_run(settings, Path(folder), steps)
        shards = {_MEMBER: Examples(examples)}
        async with (
            _parties(settings) as (here, compute),
            clients_here(here, shards, Link()) as (client,),
        ):
            async for _ in client.run():
                pass
    training = settings.training
    order = DataOrder(len(examples), training.seed, _MEMBER)
    count = training.batch_size * training.accumulate
    return [
        TaughtStep(step, seen, [examples[one] for one in order.take(step * count, count)])
        for step, seen in enumerate(compute.steps[:steps])
    ]


def _of_run(settings: Settings, folder: Path, steps: int) -> Settings:
    return settings.replace(
        training={"run": "audit", "out": folder, "clients": 1, "alpha": None},
        federation={"rounds": 1, "local_steps": steps, "secure": False},
        trunk={"name": _NAME},
    )


@asynccontextmanager
async def _parties(settings: Settings) -> AsyncIterator[tuple[Settings, CuriousCompute]]:
    """A broker and an aggregator in processes of their own, a trunk here; where they are found."""
    async with LocalSystem(settings, trunks=0) as system:
        await system.start("nodes.aggregator", "aggregator")
        engine = _CuriousEngine(system.settings, _NAME)
        async with TrunkNode(system.settings, engine) as node:
            await node.registered()
            yield system.settings, engine.compute
