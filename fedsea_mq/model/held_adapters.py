"""The adapters that a party serves with: opened by name, and put into the blocks of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fedsea_mq.errors import AdapterError
from fedsea_mq.model.adapter_set import AdapterSet, content_digest
from fedsea_mq.model.adapters import CONFIG, AdapterFolder
from fedsea_mq.model.grouped_lora import GroupedLora
from fedsea_mq.model.lora import LoraSettings, NamedBlocks
from fedsea_mq.model.partition import Part
from fedsea_mq.model.parts import BlockRun
from fedsea_mq.model.tensor_shard import WHOLE, TensorShard


@dataclass(frozen=True, slots=True)
class HeldAdapter:
    """What a party has of one adapter: a folder in peft's format, or one for each of its parts."""

    of: AdapterSet
    settings: LoraSettings
    folders: tuple[AdapterFolder, ...]

    @classmethod
    def open(cls, folder: Path, total: int) -> HeldAdapter:
        """Open a folder of peft's format, or one with `head`, `trunk` or `tail` in it.

        Raises:
            AdapterError: neither, parts that are not of one set, blocks that a model of `total`
                blocks has not, or as `AdapterFolder.open`.
        """
        inside = [folder / part for part in Part if (folder / part / CONFIG).is_file()]
        whole = (folder / CONFIG).is_file()
        folders = [AdapterFolder.open(one) for one in ([folder] if whole or not inside else inside)]
        sets = {one.adapter_set() for one in folders}
        settings = {one.settings for one in folders}
        if len(sets) > 1 or len(settings) > 1:
            raise AdapterError(f"{folder}: the parts' adapters are not of one set")
        (of,) = sets
        of.check_within(total)
        return cls(of, settings.pop(), tuple(folders))

    def blocks_of(self, run: BlockRun) -> frozenset[int]:
        """The run's blocks that the set has an adapter for.

        Raises:
            AdapterError: for some of them it is in none of the folders.
        """
        wanted = self.of.blocks.intersection(run.kv_shape.blocks)
        if missing := wanted.difference(*(folder.blocks for folder in self.folders)):
            raise AdapterError(
                f"{self.folders[0].folder}: no adapter for block {min(missing)}, which its set "
                f"{self.of.digest[:12]} has: is another part's, or of another cut"
            )
        return wanted

    def put_into(
        self, grouped: GroupedLora, name: str, run: BlockRun, shard: TensorShard = WHOLE
    ) -> str:
        """Add what is for the run's blocks, which are that share of whole ones.

        Returns its digest, empty if that is nothing.

        Raises:
            AdapterError, CheckpointError: as `AdapterFolder.read_for` and `GroupedLora.add`.
        """
        wanted = self.blocks_of(run)
        tensors: dict[str, torch.Tensor] = {}
        for folder in self.folders:
            blocks = wanted & folder.blocks
            shapes = grouped.shapes(self.settings.rank, self.settings.targets, blocks)
            whole = {key: shard.whole_shape(key, shape) for key, shape in shapes.items()}
            tensors |= folder.read_for(whole)
        device = run.kv_shape.device
        # What is trained with dropout is served without.
        settings = replace(self.settings, dropout=0.0)
        own = {key: shard.of(key, value).to(device) for key, value in tensors.items()}
        grouped.add(name, own, settings)
        return content_digest(self.settings, sorted(tensors.items())) if tensors else ""


def open_adapters(folders: Mapping[str, Path], total: int) -> dict[str, HeldAdapter]:
    """Open each. Raises what `HeldAdapter.open` raises."""
    return {name: HeldAdapter.open(folder, total) for name, folder in folders.items()}


def hold_adapters(
    run: BlockRun, adapters: Mapping[str, HeldAdapter], shard: TensorShard = WHOLE
) -> dict[str, str]:
    """Let the run's blocks, a share of whole ones, be run with any of these.

    Returns what `put_into` gives for each. Without adapters, or without blocks, the layers stay as
    they are.

    Raises:
        AdapterError, CheckpointError: one does not fit these blocks.
    """
    if not adapters or not run.layers:
        return dict.fromkeys(adapters, "")
    here = [adapter for adapter in adapters.values() if adapter.blocks_of(run)]
    targets = {target for adapter in here for target in adapter.settings.targets}
    grouped = GroupedLora(NamedBlocks.of(run), sorted(targets))
    run.adapters = grouped
    return {name: one.put_into(grouped, name, run, shard) for name, one in adapters.items()}
