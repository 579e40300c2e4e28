"""A member's own side of a round: where it begins, what it came to, what is left at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedsea_mq.errors import MalformedFrame
from fedsea_mq.model.adapters import write_adapter
from fedsea_mq.model.lora import Adapter
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.averaging import Personal, clip_update, update_of
from fedsea_mq.training.run_adapters import RunAdapters
from nodes.trainer.member_states import LocalRound, MemberStates
from nodes.trainer.parts import TrainedParts


class LocalWork:
    """Every call is for the compute thread.

    Raises on entry: `ConfigError` if a pattern of personal adapters names none, or all.
    """

    def __init__(
        self,
        parts: TrainedParts,
        personal: Personal,
        max_update_norm: float,
        adapters: RunAdapters,
        folder: Path,
    ) -> None:
        self.states = MemberStates(folder)
        self._adapters = adapters
        self._folder = folder
        self._parts = parts
        self._personal = personal
        self._max_norm = max_update_norm
        self._before: Adapter = {}
        self.layout = AdapterLayout.of_adapters(self._shared())

    def _shared(self) -> Adapter:
        adapters = self._parts.adapters()
        # Head and tail may have none: then there is nothing to share.
        return self._personal.shared(adapters) if adapters else {}

    def begin(self, round_number: int, payload: Sequence[bytes]) -> int:
        """Stand before a round, with its shared adapters; the place in the data.

        Raises:
            MalformedFrame: the payload is not the shared adapters.
            CheckpointError, AdapterError: the state on disk is damaged, or of other adapters.
        """
        shared = self._read(payload)
        before = self.states.before(round_number)
        state, position = before if before is not None else (self._parts.fresh, 0)
        self._parts.restore(state)
        self._parts.load_adapters(shared)
        self._before = shared
        return position

    def _read(self, payload: Sequence[bytes]) -> Adapter:
        came, expected = sum(map(len, payload)), 4 * self.layout.elements
        if len(payload) > 1 or came != expected:
            raise MalformedFrame(f"shared adapters of {came} bytes, expected {expected}")
        vector = np.frombuffer(b"".join(payload), "<f4")
        if not np.isfinite(vector).all():
            raise MalformedFrame("shared adapters that are not all finite numbers")
        return self.layout.unflatten(vector)

    def end(
        self, round_number: int, attempt: bytes, position: int, weight: int, loss: float
    ) -> LocalRound:
        """Save where the member stands now, and what it adds to the shared adapters."""
        update, norm = clip_update(update_of(self._shared(), self._before), self._max_norm)
        vector = self.layout.flatten(update)
        done = LocalRound(round_number, attempt, position, weight, loss, norm, vector)
        self.states.save(self._parts.state(), done)
        return done

    def finish(self, round_number: int, attempt: bytes, payload: Sequence[bytes]) -> None:
        """Write the member's final adapters in peft's format, `head` and `tail`.

        They are of the run's set after `attempt`. Raises as `begin` does.
        """
        self.begin(round_number, payload)
        lora, of = self._parts.settings.lora, self._adapters.after(attempt)
        for name, part in (("head", self._parts.head), ("tail", self._parts.tail)):
            if part.adapter.trains:
                write_adapter(self._folder / name, part.adapter.tensors(), lora, of)
