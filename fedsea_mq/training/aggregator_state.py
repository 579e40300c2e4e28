"""The aggregator's state on disk: rounds done, shared adapters, server-optimiser moments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from fedsea_mq.errors import CheckpointError
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.rounds import Progress
from fedsea_mq.training.shared_adapters import Shared
from fedsea_mq.training.state import PartState, read_state, write_state
from fedsea_mq.training.state_folders import StateFolders
from fedsea_mq.training.trained_adapter import AdapterState

_PROGRESS: Final = "progress.json"
_ADAPTERS: Final = "adapters"
_NAME: Final = "shared"
_FORMAT: Final = 2


@dataclass(frozen=True, slots=True)
class AggregatorState:
    """How the aggregator stands before round `progress.done`.

    `agreed` digests the settings that the run has been under.
    """

    agreed: str
    progress: Progress
    shared: Shared


def save_aggregator(folders: StateFolders, state: AggregatorState) -> None:
    """Write a state, unless it is there, and let go of old ones."""
    done = state.progress.done
    if done not in folders.numbers:
        said = {
            "format": _FORMAT,
            "agreed": state.agreed,
            "done": done,
            "attempt": state.shared.attempt.hex(),
            "turns": state.progress.turns,
            "last_turn": {
                client.decode(): turn for client, turn in state.progress.last_turn.items()
            },
        }
        shared = AdapterState(done, dict(state.shared.adapters), dict(state.shared.moments))
        with folders.writing(done) as partial:
            write_state(partial / _ADAPTERS, {_NAME: PartState(0, {_NAME: shared})})
            (partial / _PROGRESS).write_text(json.dumps(said, indent=1) + "\n")


def newest_aggregator(
    folders: StateFolders, agreed: str, layout: AdapterLayout
) -> AggregatorState | None:
    """The newest state, if there is one.

    Raises:
        CheckpointError: damaged, of a run under other settings, or of other adapters.
    """
    number = folders.newest()
    if number is None:
        return None
    folder = folders.path(number)
    try:
        said = json.loads((folder / _PROGRESS).read_text())
        if said["format"] != _FORMAT or said["done"] != number:
            raise CheckpointError(f"{folder}: not a state of round {number}, format {_FORMAT}")
        if said["agreed"] != agreed:
            raise CheckpointError(f"{folder}: of a run under other settings; they cannot change")
        progress, attempt = _progress(said), bytes.fromhex(said["attempt"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / _PROGRESS}: not the progress of rounds") from error
    parts = read_state(folder / _ADAPTERS)
    if parts.keys() != {_NAME} or parts[_NAME].adapters.keys() != {_NAME}:
        raise CheckpointError(f"{folder}: not the state of an aggregator")
    held = parts[_NAME].adapters[_NAME]
    if wrong := layout.mismatch(held.adapter):
        raise CheckpointError(f"{folder}: {wrong}")
    return AggregatorState(agreed, progress, Shared(held.adapter, held.moments, attempt))


def _progress(said: dict[str, Any]) -> Progress:
    last_turn = {str(name).encode(): int(turn) for name, turn in said["last_turn"].items()}
    return Progress(int(said["done"]), int(said["turns"]), last_turn)
