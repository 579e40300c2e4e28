"""A live training run whose trunk node is in this process, and keeps what it receives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fedsea_mq.cli.bench.clients_here import clients_here
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.load.plan import Link
from fedsea_mq.model.wire_gradients import decode_gradient
from fedsea_mq.model.wire_states import decode_states
from fedsea_mq.privacy.attacks.labels import GradientSeen
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.training.sliced_blocks import Slices
from fedsea_mq.training.trunk_compute import TrunkCompute
from fedsea_mq.training.trunk_work import Outcome, RunBackward, RunForward, Work
from nodes.trainer import Examples
from nodes.trunk import TrunkNode
from nodes.trunk.engine import Loaded, TrunkEngine

_NAME = "curious"


class CuriousCompute(TrunkCompute):
    """Trains as any trunk does, and keeps the states and gradients of each sequence."""

    def __init__(self, of: TrunkCompute) -> None:
        vars(self).update(vars(of))  # what it holds is the other's, and the other is not used
        self.kept: list[GradientSeen] = []
        self._waiting: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def slices(self, work: Work) -> Slices[Outcome]:
        """See `TrunkCompute.slices`."""
        outcome = yield from super().slices(work)
        if isinstance(work, RunForward) and work.trains and isinstance(outcome, dict):
            (piece,) = work.pieces
            answer = outcome[piece.member]
            received, outputs = (
                decode_states(payload, piece.positions, piece.spec, torch.float32)
                for payload in (piece.payload, answer.payload)
            )
            self._waiting[work.number] = received, outputs
        if isinstance(work, RunBackward) and work.number in self._waiting:
            (piece,) = work.pieces
            came = work.gradients[piece.member]
            gradient = decode_gradient(came.payload, came.exponent, piece.positions, piece.spec)
            parts = (*self._waiting.pop(work.number), gradient)
            apart = [torch.split(rows, list(piece.lengths)) for rows in parts]
            self.kept += [GradientSeen(*one) for one in zip(*apart, strict=True)]
        return outcome


class _CuriousEngine(TrunkEngine):
    """Has its node train with a `CuriousCompute`."""

    curious: CuriousCompute | None = None

    @property
    def loaded(self) -> Loaded:
        loaded = super().loaded
        if self.curious is None and loaded.training is not None:
            self.curious = CuriousCompute(loaded.training)
        return replace(loaded, training=self.curious)


async def captured_training(
    settings: Settings, examples: Sequence[Encoded], steps: int
) -> Sequence[GradientSeen]:
    """Train one member on the examples, one a step, and keep what its trunk saw of each."""
    with TemporaryDirectory(prefix="fedsea-audit-") as folder:
        settings = settings.replace(
            training={
                "run": "audit",
                "out": Path(folder),
                "clients": 1,
                "batch_size": 1,
                "alpha": None,
            },
            federation={"rounds": 1, "local_steps": steps},
        )
        async with LocalSystem(settings, trunks=0) as system:
            await system.start("nodes.aggregator", "aggregator")
            named = system.settings.replace(trunk={"name": _NAME})
            engine = _CuriousEngine(named, _NAME)
            shards = {"member": Examples(examples)}
            async with (
                TrunkNode(named, engine) as node,
                clients_here(system.settings, shards, Link()) as (client,),
            ):
                await node.registered()
                async for _ in client.run():
                    pass
    assert engine.curious is not None
    return engine.curious.kept
