"""Stop and go on exactly: a folder of JSON and safetensors, nothing pickled.

A folder is written whole or not at all: under another name first, then renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors.torch import save_file

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.safetensors_file import stored_tensors
from fedsea_mq.training.seeds import DropoutStream
from fedsea_mq.training.state_folders import written_whole
from fedsea_mq.training.trained_adapter import AdapterState, TrainedAdapter

STATE: Final = "training_state.json"
_FORMAT: Final = 1
_KINDS: Final = ("adapter", "moments")


class Resumable(Protocol):
    """Head or tail in training."""

    @property
    def dropout(self) -> DropoutStream:
        """Its random numbers."""

    @property
    def adapters(self) -> Mapping[str, TrainedAdapter]:
        """Its adapters, by name."""


@dataclass(frozen=True, slots=True)
class PartState:
    """The state of each adapter, and the forward passes made, where dropout follows from those."""

    draws: int
    adapters: Mapping[str, AdapterState]


def state_of(part: Resumable) -> PartState:
    """A copy of all that training changes.

    Raises:
        CheckpointError: gradients wait for their step.
    """
    return PartState(
        part.dropout.draws, {name: adapter.state() for name, adapter in part.adapters.items()}
    )


def restore(part: Resumable, state: PartState) -> None:
    """Go on exactly from `state`, in a part that was loaded with the same settings.

    Raises:
        CheckpointError: the state is of other adapters.
        AdapterError: an adapter has other names or shapes.
    """
    if part.adapters.keys() != state.adapters.keys():
        raise CheckpointError(
            f"a state of {len(state.adapters)} adapters for a part of {len(part.adapters)}, "
            "or of other names"
        )
    for name, adapter in part.adapters.items():
        adapter.restore(state.adapters[name])
    part.dropout.draws = state.draws


def write_state(folder: Path, parts: Mapping[str, PartState]) -> None:
    """Write the state of the parts that one process trains, by name.

    Raises:
        CheckpointError: `folder` is there already.
    """
    with written_whole(folder) as partial:
        said = {name: _write_part(partial, name, part) for name, part in parts.items()}
        text = json.dumps({"format": _FORMAT, "parts": said}, indent=1) + "\n"
        (partial / STATE).write_text(text)


def read_state(folder: Path) -> dict[str, PartState]:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: not such a folder, or damaged.
    """
    try:
        said = json.loads((folder / STATE).read_text())
        if said["format"] != _FORMAT:
            raise CheckpointError(f"{folder}: format {said['format']}, {_FORMAT} expected")
        return {name: _read_part(folder, part) for name, part in said["parts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / STATE}: not a training state") from error


def _write_part(folder: Path, name: str, part: PartState) -> dict[str, Any]:
    adapters = []
    for number, (adapter, state) in enumerate(part.adapters.items()):
        # Numbered: an adapter's name may be any text.
        file = f"{name}-{number}.safetensors"
        tensors = {f"adapter.{key}": tensor for key, tensor in state.adapter.items()}
        tensors |= {f"moments.{key}": tensor for key, tensor in state.moments.items()}
        save_file(tensors, folder / file)
        adapters.append({"name": adapter, "steps": state.steps, "file": file})
    return {"draws": part.draws, "adapters": adapters}


def _read_part(folder: Path, said: Mapping[str, Any]) -> PartState:
    adapters = {str(one["name"]): _read_adapter(folder, one) for one in said["adapters"]}
    return PartState(_count(said["draws"]), adapters)


def _read_adapter(folder: Path, said: Mapping[str, Any]) -> AdapterState:
    file = str(said["file"])
    if Path(file).name != file:
        raise CheckpointError(f"{folder}: a file outside of the folder")
    tensors: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in _KINDS}
    for stored in stored_tensors(folder / file):
        kind, _, name = stored.name.partition(".")
        # A copy, so that no view keeps the mapped file alive.
        tensors[kind][name] = stored.read().clone()
    if not all(tensor.isfinite().all() for tensor in tensors["adapter"].values()):
        raise CheckpointError(f"{folder / file}: an adapter of numbers that are not all finite")
    return AdapterState(_count(said["steps"]), tensors["adapter"], tensors["moments"])


def _count(said: Any) -> int:
    if type(said) is not int or said < 0:
        raise ValueError("a count expected")
    return said
