"""A model on disk: a transformers folder, a hub id, the embedded model, or fedsea shards.

Opening one reads the config and the tables of contents only. Tensors are read by name, each part
its own, and nothing else of the file enters memory.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from fedsea_mq.errors import CheckpointError, IllegalCut, UnsupportedModel
from fedsea_mq.model.partition import EMBEDDING, LM_HEAD, Cut, Part, part_of
from fedsea_mq.model.safetensors_file import StoredTensor, stored_tensors
from fedsea_mq.model.tensor_shard import WHOLE, TensorShard

EMBEDDED: Final = "embedded"
EMBEDDED_DRAFT: Final = "embedded-draft"
MANIFEST: Final = "fedsea_shard.json"
# Families whose split result is tested against the unsplit model. Others of the same shape may
# scale embeddings, residuals or logits, and would be silently wrong.
FAMILIES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# RoPE variants that depend on the longest sequence of a batch: another client's session would
# change this one's result.
_UNSPLITTABLE_ROPE: Final = frozenset({"dynamic", "longrope"})
# What of a hub's repository is fetched.
_FILES: Final = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
# Keys of config.json that change without changing the model's function.
_VOLATILE: Final = frozenset({"transformers_version", "_name_or_path", "torch_dtype", "dtype"})


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a shard folder says of itself: its part, its cut and the whole model's digests."""

    part: str
    head_blocks: int
    tail_blocks: int
    digests: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a shard folder.

        Raises:
            CheckpointError: damaged, or not a manifest.
        """
        try:
            return cls(**json.loads((folder / MANIFEST).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / MANIFEST}: not a shard manifest") from error


class Checkpoint:
    """A model on disk, opened by `Checkpoint.open`."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        self.tensors = _index(folders)
        manifests = [Manifest.read(f) for f in folders if (f / MANIFEST).exists()]
        self.manifest = manifests[0] if manifests else None
        if any(_common(m) != _common(manifests[0]) for m in manifests):
            raise CheckpointError(f"{folders[0].parent}: shards of different models or cuts")
        self.config = _config(folders[0])

    @classmethod
    def open(cls, model: str) -> Checkpoint:
        """Open `embedded` or `embedded-draft`, a local folder, a folder of shards, or a hub id.

        Raises:
            CheckpointError: nothing there that can be read.
            UnsupportedModel: a family or RoPE variant that cannot be split exactly.
        """
        root = _locate(model)
        shards = [root / part for part in Part if (root / part / MANIFEST).exists()]
        return cls(shards or [root])

    @property
    def blocks(self) -> int:
        """Decoder blocks of the whole model."""
        return int(self.config.num_hidden_layers)

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return int(self.config.hidden_size)

    @property
    def max_positions(self) -> int:
        """The model's own bound on a sequence."""
        return int(self.config.max_position_embeddings)

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end a generation: generation_config.json's, else config.json's."""
        ids = getattr(self.config, "eos_token_id", None)
        for folder in self.folders:
            file = folder / "generation_config.json"
            if file.exists():
                ids = json.loads(file.read_text()).get("eos_token_id", ids)
        return frozenset(ids if isinstance(ids, list) else [ids]) - {None}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that lies beside the weights."""
        for folder in self.folders:
            if (folder / "tokenizer.json").exists() or (folder / "tokenizer.model").exists():
                return AutoTokenizer.from_pretrained(folder)
        raise CheckpointError(f"{self.folders[0]}: no tokenizer beside the weights")

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of every tensor of the whole model, by name; reads the files once."""
        if self.manifest is not None:
            return self.manifest.digests
        return {name: tensor.digest() for name, tensor in sorted(self.tensors.items())}

    def fingerprint(self, cut: Cut) -> str:
        """Hex digest of weights, config and cut: equal on two parties that fit each other."""
        if self.manifest is not None:
            made_for = Cut(self.manifest.head_blocks, self.manifest.tail_blocks)
            if cut != made_for:
                raise IllegalCut(f"cut {cut} asked of shards that were made for {made_for}")
        config = json.loads((self.folders[0] / "config.json").read_text())
        said = {
            "config": {key: value for key, value in config.items() if key not in _VOLATILE},
            "cut": [cut.head_blocks, cut.tail_blocks],
            "digests": self.digests,
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def names(self, part: Part, cut: Cut) -> list[str]:
        """The tensors of `part`, in a fixed order.

        With tied embeddings the tail's lm_head is the embedding under its own name.
        """
        names = sorted(n for n in self.tensors if part_of(n, cut, self.blocks) is part)
        if part is Part.TAIL and self.tied and LM_HEAD not in names:
            names.append(EMBEDDING)
        return names

    @property
    def tied(self) -> bool:
        """Whether lm_head shares the embedding's weight."""
        return bool(self.config.tie_word_embeddings)

    def nbytes(self, names: list[str]) -> int:
        """Stored bytes of these tensors."""
        return sum(self.tensors[name].nbytes for name in names)

    def load(
        self,
        names: list[str],
        dtype: torch.dtype,
        device: str,
        shard: TensorShard = WHOLE,
        *,
        keep: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Read this share of these tensors, and nothing else, in the compute dtype.

        Those that are not to be kept may be views of the file, which stays mapped as long as they
        live.

        Raises:
            CheckpointError: a tensor is missing, damaged, or differs from the shard's manifest.
            UnevenShards: a tensor cannot be cut for so many ranks.
        """
        missing = [name for name in names if name not in self.tensors]
        if missing:
            raise CheckpointError(
                f"{self.folders[0]}: {len(missing)} tensors missing, first {missing[0]}"
            )
        return {
            name: self._read(self.tensors[name], shard).to(device, dtype, copy=keep)
            for name in names
        }

    def _read(self, stored: StoredTensor, shard: TensorShard) -> torch.Tensor:
        if self.manifest is not None and stored.digest() != self._expected_digest(stored.name):
            raise CheckpointError(f"{stored.file}: tensor {stored.name} is not the one sharded")
        tensor = stored.read(None if shard == WHOLE else shard.part(stored.name, stored.shape))
        return torch.zeros_like(tensor) if shard.leaves_out(stored.name) else tensor

    def _expected_digest(self, name: str) -> str | None:
        # A tied model's tail shard carries the embedding under lm_head's name.
        return self.digests.get(name) or (self.digests.get(EMBEDDING) if self.tied else None)


def _common(manifest: Manifest) -> tuple[int, int, dict[str, str]]:
    return manifest.head_blocks, manifest.tail_blocks, manifest.digests


def _locate(model: str, wanted: list[str] = _FILES) -> Path:
    if model == EMBEDDED:
        return Path(__file__).parent / "embedded"
    if model == EMBEDDED_DRAFT:
        return Path(__file__).parent / "embedded_draft"
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or model.startswith(".") or model.count("/") != 1:
        raise CheckpointError(f"{model}: no such folder, and not a hub id of the form owner/name")
    return _fetch(model, wanted)


def read_config(model: str) -> PreTrainedConfig:
    """The config alone of what `Checkpoint.open` opens; of a hub id no weights are fetched.

    Raises what `Checkpoint.open` raises.
    """
    root = _locate(model, ["config.json"])
    parts = (root / part for part in Part)
    return _config(next((part for part in parts if (part / MANIFEST).exists()), root))


def _fetch(hub_id: str, wanted: list[str]) -> Path:
    # Imported here: a local model needs no hub.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:  # the hub client raises many unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{hub_id}: cannot be fetched from the hub: {reason}") from error


def _index(folders: list[Path]) -> dict[str, StoredTensor]:
    files = sorted(file for folder in folders for file in folder.glob("*.safetensors"))
    if not files:
        old = any(folder.glob("*.bin") for folder in folders)
        hint = "; convert its .bin files with save_pretrained" if old else ""
        raise CheckpointError(f"{folders[0]}: no .safetensors files{hint}")
    return {tensor.name: tensor for file in files for tensor in stored_tensors(file)}


def _config(folder: Path) -> PreTrainedConfig:
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder}: no config.json")
    try:
        config: Any = AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises many unrelated types on a bad config
        raise CheckpointError(f"{folder / 'config.json'}: not a model config") from error
    if config.model_type not in FAMILIES:
        raise UnsupportedModel(
            f"model family {config.model_type!r}; supported: {', '.join(sorted(FAMILIES))}"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _UNSPLITTABLE_ROPE:
        raise UnsupportedModel(f"RoPE type {rope!r} depends on other sequences in the batch")
    return config
