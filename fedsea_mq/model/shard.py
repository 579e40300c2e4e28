"""Write a checkpoint as three folders that can be handed out separately."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.checkpoint import Checkpoint, Manifest
from fedsea_mq.model.partition import EMBEDDING, LM_HEAD, Cut, Part

_CLIENT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_FILE_BYTES = 2 << 30


def write_shards(checkpoint: Checkpoint, cut: Cut, out: Path) -> dict[Part, int]:
    """Write `out/head`, `out/trunk` and `out/tail`; return the tensor bytes of each.

    Every folder holds the config, a manifest with the digests of the whole model, and its own
    tensors, byte for byte in their stored dtype. Tokenizer files go to head and tail only: the
    trunk has no use for them.

    Raises:
        CheckpointError: `out` holds something already, or `checkpoint` is a shard itself.
        IllegalCut: the cut leaves no trunk.
    """
    if checkpoint.manifest is not None:
        raise CheckpointError("these are shards already; shard the whole model instead")
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out}: not empty")
    cut.blocks(Part.TRUNK, checkpoint.blocks)
    return {part: _write_part(checkpoint, cut, part, out / part) for part in Part}


def _write_part(checkpoint: Checkpoint, cut: Cut, part: Part, folder: Path) -> int:
    folder.mkdir(parents=True)
    source = checkpoint.folders[0]
    shutil.copy(source / "config.json", folder)
    if part is not Part.TRUNK:
        for name in _CLIENT_FILES:
            if (source / name).exists():
                shutil.copy(source / name, folder)
    names = checkpoint.names(part, cut)
    for number, group in enumerate(_groups(checkpoint, names)):
        tensors = {_own_name(name, part): checkpoint.tensors[name].read() for name in group}
        file = folder / f"model-{number:05d}.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(0o644)  # as the files beside it: the folder is made to be handed out
    Manifest(part, cut.head_blocks, cut.tail_blocks, checkpoint.digests).write(folder)
    return checkpoint.nbytes(names)


def _groups(checkpoint: Checkpoint, names: list[str]) -> list[list[str]]:
    """Names in runs of at most `_FILE_BYTES`, so that writing holds one file's tensors."""
    groups: list[list[str]] = [[]]
    for name in names:
        if groups[-1] and checkpoint.nbytes([*groups[-1], name]) > _FILE_BYTES:
            groups.append([])
        groups[-1].append(name)
    return groups


def _own_name(name: str, part: Part) -> str:
    return LM_HEAD if part is Part.TAIL and name == EMBEDDING else name
