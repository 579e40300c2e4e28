"""The work of a trunk in training, in slices: frames' payloads in, payloads out, states to disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from fedsea_mq.errors import CheckpointError, TrainingDiverged
from fedsea_mq.model.adapters import write_adapter
from fedsea_mq.model.wire_gradients import decode_gradient, encode_gradient
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.training.batch import Batch
from fedsea_mq.training.grouped_trunk import GroupedTrunk
from fedsea_mq.training.optimizer import clip_factor
from fedsea_mq.training.run_adapters import RunAdapters
from fedsea_mq.training.seeds import derived_seed
from fedsea_mq.training.settings import TrainingSettings
from fedsea_mq.training.sliced_blocks import Slices
from fedsea_mq.training.state import PartState, read_state, write_state
from fedsea_mq.training.state_folders import StateFolders
from fedsea_mq.training.trunk_work import (
    Answer,
    DropPasses,
    NotFinite,
    Outcome,
    Piece,
    Restore,
    RunBackward,
    RunForward,
    Save,
    TakeStep,
    Work,
)

PART: Final = "trunk"
ADAPTER_FOLDER: Final = "adapter"
# The largest squared norm that a frame can tell.
_MAX_SQUARED_NORM: Final = 1e12
_PARTS: Final = "parts"


class TrunkCompute:
    """Does what `trunk_rounds` asks for; `folder` is the trunk's part of the run's output."""

    def __init__(
        self,
        trunk: GroupedTrunk,
        settings: TrainingSettings,
        max_norm: float,
        adapters: RunAdapters,
        folder: Path,
    ) -> None:
        self._trunk = trunk
        self._settings = settings
        self._max_norm = max_norm
        self._adapters = adapters
        self._states = StateFolders(folder)
        self._folder = folder

    def slices(self, work: Work) -> Slices[Outcome]:
        """Run a piece of work; raises what it fails with."""
        match work:
            case RunForward():
                return self._forward(work)
            case RunBackward():
                return self._backward(work)
            case TakeStep():
                return self._step(work)
            case DropPasses():
                return self._drop(work)
            case Restore():
                return self._restore(work)
            case Save():
                return self._save(work)

    def _forward(self, work: RunForward) -> Slices[Outcome]:
        pieces = work.pieces
        states = [decode_states(p.payload, p.positions, p.spec, torch.float32) for p in pieces]
        if wrong := _not_finite({p.member: rows for p, rows in zip(pieces, states, strict=True)}):
            return NotFinite(wrong)
        yield
        packed = torch.cat(states).to(self._settings.device)
        batch = self._batch(pieces, trains=work.trains)
        outputs = yield from self._trunk.forward(
            work.number, packed, batch, wants_gradient=work.trains
        )
        return {
            piece.member: Answer(encode_states(rows, piece.spec.dtype))
            for piece, rows in _apart(pieces, outputs)
        }

    def _batch(self, pieces: Sequence[Piece], *, trains: bool) -> Batch:
        lengths = [length for piece in pieces for length in piece.lengths]
        adapters = [piece.adapter for piece in pieces for _ in piece.lengths]
        seeds = [seed for piece in pieces for seed in self._seeds(piece)] if trains else []
        return Batch(tuple(lengths), tuple(adapters), tuple(seeds))

    def _seeds(self, piece: Piece) -> list[int]:
        """Of dropout, a sequence: the same in a repeated attempt, whoever is in the pass."""
        if not self._settings.lora.dropout:
            return []
        steps = self._trunk.adapters[piece.adapter].steps
        words = (self._settings.seed, "dropout", PART, piece.member, steps, piece.micro)
        return [derived_seed(*words, number) for number in range(len(piece.lengths))]

    def _backward(self, work: RunBackward) -> Slices[Outcome]:
        came = {
            p.member: decode_gradient(one.payload, one.exponent, p.positions, p.spec)
            for p in work.pieces
            if (one := work.gradients.get(p.member)) is not None
        }
        if wrong := _not_finite(came):
            return NotFinite(wrong)
        yield
        scale = len(came) if work.averages else 1
        hidden = work.pieces[0].spec.hidden
        rows = [
            came[p.member] / scale if p.member in came else torch.zeros(p.positions, hidden)
            for p in work.pieces
        ]
        packed = torch.cat(rows).to(self._settings.device)
        gradient = yield from self._trunk.backward(work.number, packed)
        norms = {p.adapter: self._squared_norm(p.adapter) for p in work.pieces}
        answers = {}
        for piece, back in _apart(work.pieces, gradient):
            if piece.member in came:
                exponent, payload = encode_gradient(back * scale, piece.spec.dtype)
                answers[piece.member] = Answer(payload, exponent, norms[piece.adapter])
        return answers

    def _squared_norm(self, adapter: str) -> float:
        squared = self._trunk.adapters[adapter].squared_norm()
        if not squared <= _MAX_SQUARED_NORM:
            raise TrainingDiverged(f"the gradients' squared norm exceeds {_MAX_SQUARED_NORM:g}")
        return squared

    def _step(self, work: TakeStep) -> Slices[Outcome]:
        yield from ()
        adapter = self._trunk.adapters[work.adapter]
        others = math.fsum(work.squared_norms.values()) / len(work.squared_norms)
        adapter.step(clip_factor([adapter.squared_norm(), others], self._max_norm))
        return {}

    def _drop(self, work: DropPasses) -> Slices[Outcome]:
        yield from ()
        for number in work.numbers:
            self._trunk.drop(number)
        return {}

    def _restore(self, work: Restore) -> Slices[Outcome]:
        yield from ()
        found = self._states.newest(work.round)
        if found is None and work.round > 0:
            raise CheckpointError(f"no state before round {work.round} or earlier")
        state = PartState(0, {})
        if found is not None:
            state = read_state(self._states.path(found) / _PARTS)[PART]
        self._trunk.restore(state)
        # Between rounds all adapters are equal: who is new begins where the others are.
        held = next(iter(self._trunk.adapters.values()), None)
        for name in work.adapters:
            if name not in self._trunk.adapters:
                self._trunk.add(name, None if held is None else held.tensors())
        return {}

    def _save(self, work: Save) -> Slices[Outcome]:
        adapters = self._trunk.adapters
        for adapter in adapters.values():
            adapter.forget()  # gradients of steps that will not be taken
        if work.weights:
            mean = self._trunk.average(work.weights)
            for adapter in adapters.values():
                adapter.load(mean)
        yield
        with self._states.writing(work.round) as folder:
            write_state(folder / _PARTS, {PART: self._trunk.state()})
        yield
        shared = next(iter(adapters.values()))
        if shared.trains:
            write_adapter(
                self._folder / ADAPTER_FOLDER,
                shared.tensors(),
                self._settings.lora,
                self._adapters.after(work.attempt),
            )
        return {}


def _not_finite(rows: Mapping[str, torch.Tensor]) -> frozenset[str]:
    return frozenset(name for name, one in rows.items() if not bool(torch.isfinite(one).all()))


def _apart(pieces: Sequence[Piece], packed: torch.Tensor) -> Sequence[tuple[Piece, torch.Tensor]]:
    rows = torch.split(packed, [piece.positions for piece in pieces])
    return list(zip(pieces, rows, strict=True))
