"""LoRA adapters on disk, in peft's format: `adapter_config.json`, `adapter_model.safetensors`.

A part's adapter and the whole model's are the same kind of folder; the config says which decoder
blocks have one. What is read here may come from anybody: only safetensors are read, nothing is
unpickled, and all names and shapes are checked before a tensor is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from fedsea_mq.errors import AdapterError, ConfigError
from fedsea_mq.model.adapter_set import (
    STAMP,
    AdapterSet,
    content_digest,
    read_stamp,
    write_stamp,
)
from fedsea_mq.model.lora import PROJECTIONS, Adapter, LoraSettings, check_adapter
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.model.safetensors_file import StoredTensor, stored_tensors
from fedsea_mq.model.writing import told_if_unwritable

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_TENSOR: Final = re.compile(
    r"model\.layers\.(0|[1-9]\d{0,4})\.(self_attn|mlp)\.(\w+)"
    r"\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)"
)
_DTYPES: Final = frozenset({"F32", "F16", "BF16"})
_MAX_CONFIG_BYTES: Final = 1 << 20
# Keys of the config that are read, or that say nothing of what a trained adapter computes.
_UNDERSTOOD: Final = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_rslora",
        "use_dora",
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)
# Other ways to begin change the base weights too.
_PLAIN: Final = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}


def write_adapter(
    folder: Path, adapter: Adapter, settings: LoraSettings, of: AdapterSet | None = None
) -> None:
    """Write an adapter of one part or of several; `of` is the set that it is part of.

    Raises:
        AdapterError: the adapter is empty, or its names are not those of decoder blocks.
        CheckpointError: the folder cannot be written.
    """
    blocks = {_block(name, settings) for name in adapter}
    if not blocks:
        raise AdapterError(f"{folder}: an adapter without tensors is not written")
    with told_if_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STAMP).unlink(missing_ok=True)
        tensors = {f"{_PREFIX}{name}": tensor.contiguous() for name, tensor in adapter.items()}
        partial = folder / f"{WEIGHTS}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.chmod(0o644)  # as the files beside it: the folder is made to be handed out
        partial.replace(folder / WEIGHTS)
        config = settings.config(blocks)
        config.inference_mode = True
        config.save_pretrained(folder)
        if of is not None:
            write_stamp(folder, of, content_digest(settings, sorted(adapter.items())))


def merge_adapters(folders: Sequence[Path], out: Path) -> None:
    """Write the parts' adapters as one, which peft loads on the unsplit model.

    Raises:
        AdapterError: different settings, a block in two parts, parts of different sets, a set with
            parts missing, or what `AdapterFolder.open` and `write_adapter` raise.
    """
    parts = [AdapterFolder.open(folder) for folder in folders]
    if len({part.settings for part in parts}) != 1:
        raise AdapterError(f"{out}: the parts' adapters have different settings, or there are none")
    blocks = [block for part in parts for block in part.blocks]
    if len(set(blocks)) < len(blocks):
        raise AdapterError(f"{out}: the parts' adapters have blocks in common")
    sets = {part.stamp() for part in parts}
    if len(sets) > 1:
        raise AdapterError(f"{out}: the parts' adapters are not of one set")
    (of,) = sets
    if of is not None and (missing := of.blocks.difference(blocks)):
        raise AdapterError(f"{out}: the set's adapters of blocks {_listed(missing)} are missing")
    tensors = {name: tensor for part in parts for name, tensor in part.read().items()}
    write_adapter(out, tensors, parts[0].settings, of)


def split_adapter(folder: Path, cut: Cut, total: int, out: Path) -> list[Part]:
    """Write an adapter of a model of `total` blocks as `out/head`, `out/trunk` and `out/tail`.

    Each says which set it is of. A part whose blocks have no adapter gets no folder.

    Raises:
        AdapterError: a part's adapter already, blocks beyond the model, or as `AdapterFolder.open`.
        IllegalCut: the cut leaves no trunk.
    """
    whole = AdapterFolder.open(folder)
    of = whole.adapter_set()
    if of.blocks != whole.blocks:
        raise AdapterError(f"{folder}: of a part already; merge the parts first")
    of.check_within(total)
    written = []
    for part in Part:
        blocks = whole.blocks.intersection(cut.blocks(part, total))
        if blocks:
            write_adapter(out / part, whole.read(blocks), whole.settings, of)
            written.append(part)
    return written


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter on disk; opening it reads the config and the table of contents only."""

    folder: Path
    settings: LoraSettings
    stored: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, folder: Path) -> AdapterFolder:
        """Open one that peft or `write_adapter` wrote.

        Raises:
            AdapterError: no such folder, not LoRA on decoder blocks, or a kind of LoRA that is not
                supported.
            CheckpointError: the file of tensors is damaged.
        """
        settings = _settings(folder)
        if not (folder / WEIGHTS).is_file():
            raise AdapterError(f"{folder}: no {WEIGHTS}; other formats are not read")
        entries = stored_tensors(folder / WEIGHTS)
        stored = {entry.name.removeprefix(_PREFIX): entry for entry in entries}
        for name, entry in stored.items():
            _block(name, settings)
            if entry.dtype not in _DTYPES:
                raise AdapterError(f"{folder}: {name} is of dtype {entry.dtype}")
            _check_rank(name, entry.shape, settings)
        opened = cls(folder, settings, stored)
        if missing := opened.names() - stored.keys():
            raise AdapterError(f"{folder}: {len(missing)} tensors missing, first {min(missing)}")
        return opened

    @property
    def blocks(self) -> frozenset[int]:
        """The decoder blocks that have an adapter."""
        return frozenset(_block(name, self.settings) for name in self.stored)

    def digest(self) -> str:
        """SHA-256 of what the adapter computes, in hex; reads the file, a tensor at a time.

        Raises:
            CheckpointError: the file is damaged.
        """
        stored = sorted(self.stored.items())
        return content_digest(self.settings, ((name, one.read()) for name, one in stored))

    def stamp(self) -> AdapterSet | None:
        """The set that the folder says it is of. Raises `AdapterError` as `read_stamp`."""
        return self._stamp(self.digest())

    def adapter_set(self) -> AdapterSet:
        """The set that it is of: a folder that says nothing is one by itself."""
        own = self.digest()
        return self._stamp(own) or AdapterSet(own, self.blocks)

    def _stamp(self, own: str) -> AdapterSet | None:
        of = read_stamp(self.folder, own)
        if of is not None and not self.blocks <= of.blocks:
            raise AdapterError(f"{self.folder / STAMP}: a set without blocks that are here")
        return of

    def names(self) -> frozenset[str]:
        """The tensors that an adapter of these blocks and settings has."""
        kinds = ["lora_A.weight", "lora_B.weight"]
        kinds += ["lora_magnitude_vector"] if self.settings.dora else []
        return frozenset(
            f"model.layers.{block}.{PROJECTIONS[target]}.{target}.{kind}"
            for block in self.blocks
            for target in self.settings.targets
            for kind in kinds
        )

    def read(self, blocks: Iterable[int] | None = None) -> dict[str, torch.Tensor]:
        """fp32 tensors of these decoder blocks, by default of all.

        Raises:
            AdapterError: a value is not a finite number.
            CheckpointError: the file is damaged.
        """
        wanted = self.blocks if blocks is None else frozenset(blocks)
        chosen = {n: one for n, one in self.stored.items() if _block(n, self.settings) in wanted}
        tensors = {name: one.read().float().clone() for name, one in chosen.items()}
        check_adapter(tensors, {name: one.shape for name, one in chosen.items()})
        return tensors

    def read_for(self, expected: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """The tensors of these names, whose shapes are checked before any is read.

        Raises:
            AdapterError: one is missing, of another shape, or not of finite numbers.
            CheckpointError: the file is damaged.
        """
        for name, shape in expected.items():
            if name not in self.stored:
                raise AdapterError(f"{self.folder}: no {name}")
            if self.stored[name].shape != shape:
                came = list(self.stored[name].shape)
                raise AdapterError(f"{self.folder}: {name}: {list(shape)} expected, {came} came")
        return self.read(_block(name, self.settings) for name in expected)


def _block(name: str, settings: LoraSettings) -> int:
    """The decoder block of a tensor; refuses what is not of an adapter with these settings."""
    match = _TENSOR.fullmatch(name)
    if match is None:
        raise AdapterError(f"{name[:200]}: not a LoRA tensor of a decoder block")
    block, parent, target, kind = match.groups()
    if target not in settings.targets or PROJECTIONS[target] != parent:
        raise AdapterError(f"{name}: not one of the targets {', '.join(settings.targets)}")
    if kind == "lora_magnitude_vector" and not settings.dora:
        raise AdapterError(f"{name}: of DoRA, which the adapter's config does not say")
    return int(block)


def _listed(blocks: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(blocks)))


def _check_rank(name: str, shape: tuple[int, ...], settings: LoraSettings) -> None:
    if name.endswith("lora_magnitude_vector"):
        fits = len(shape) == 1
    else:
        fits = len(shape) == 2 and shape[0 if ".lora_A." in name else 1] == settings.rank
    if not fits or 0 in shape:
        raise AdapterError(f"{name}: of shape {list(shape)}, of rank {settings.rank} by its config")


def _settings(folder: Path) -> LoraSettings:
    file = folder / CONFIG
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise AdapterError(f"{file}: larger than {_MAX_CONFIG_BYTES} bytes")
        said = json.loads(file.read_text())
        targets = said["target_modules"]
        if said["peft_type"] != "LORA" or not isinstance(targets, list):
            raise AdapterError(f"{file}: not LoRA on target modules that are listed")
        _check_rest(file, said)
        return LoraSettings(
            rank=_number(said, "r", int),
            alpha=_number(said, "lora_alpha", int, float),
            dropout=_number(said, "lora_dropout", int, float),
            targets=tuple(sorted(str(name) for name in targets)),
            rslora=said.get("use_rslora") is True,
            dora=said.get("use_dora") is True,
        )
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise AdapterError(f"{file}: not a LoRA config that can be used: {error}") from error


def _number(said: Mapping[str, Any], key: str, *kinds: type) -> Any:
    value = said[key]
    if type(value) not in kinds or not math.isfinite(value):
        raise AdapterError(f"{key}: a number expected")
    return value


def _check_rest(file: Path, said: Mapping[str, Any]) -> None:
    """Refuse what changes what an adapter computes and is not read: ranks by layer and such."""
    for key, value in said.items():
        understood = key in _UNDERSTOOD or value in _PLAIN.get(key, (None, False, {}, []))
        if not understood:
            raise AdapterError(f"{file}: {key} is not supported")
