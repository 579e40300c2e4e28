"""LoRA by peft, in the decoder blocks of one part.

Everything is named as in the unsplit model, `model.layers.N.self_attn.q_proj`, so that the parts'
adapters are pieces of one adapter of peft's format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import nn

from fedsea_mq.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig

    from fedsea_mq.model.parts import BlockRun

# A part's adapter: tensors by the names that peft's files have for them, without the prefix there.
Adapter = Mapping[str, torch.Tensor]

PROJECTIONS: Final = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
MAX_RANK: Final = 1024
_NAME: Final = "default"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What LoRA is put where. The defaults adapt the attention projections, as the paper does.

    Raises `ConfigError` for values out of range.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise ConfigError(f"LoRA rank {self.rank}: from 1 to {MAX_RANK}")
        if not 0.0 < self.alpha < math.inf:
            raise ConfigError(f"LoRA alpha {self.alpha}: more than 0")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"LoRA dropout {self.dropout}: from 0 to less than 1")
        unknown = set(self.targets) - set(PROJECTIONS)
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ConfigError(f"LoRA targets: one or more of {', '.join(PROJECTIONS)}, each once")

    @property
    def scaling(self) -> float:
        """The factor of what the adapter adds."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def config(self, blocks: Iterable[int]) -> LoraConfig:
        """The same in peft's terms, for these decoder blocks of the unsplit model."""
        # Imported here: reading adapters and serving them need no peft.
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=sorted(self.targets),
            layers_to_transform=sorted(blocks),
            use_rslora=self.rslora,
            use_dora=self.dora,
            task_type="CAUSAL_LM",
        )


class NamedBlocks(nn.Module):
    """Decoder blocks, by number, under the names that the unsplit model has for them."""

    def __init__(self, layers: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.layers = nn.ModuleDict({str(index): layer for index, layer in layers.items()})
        self.blocks = list(layers)

    @classmethod
    def of(cls, run: BlockRun) -> NamedBlocks:
        """Those of a part, which go on being the part's."""
        return cls(dict(zip(run.kv_shape.blocks, run.layers, strict=True)))

    def targets(self, targets: Iterable[str]) -> dict[str, nn.Module]:
        """The layers that LoRA is put on, by their names in the unsplit model."""
        names = (
            f"model.layers.{index}.{PROJECTIONS[target]}.{target}"
            for index in self.blocks
            for target in targets
        )
        return {name: self.get_submodule(name) for name in names}


class PeftAdapter:
    """One adapter inside the blocks of a part, put there by peft; its weights are fp32."""

    def __init__(self, blocks: NamedBlocks, settings: LoraSettings, seed: int) -> None:
        self._blocks = blocks
        self._parameters: dict[str, nn.Parameter] = {}
        if not blocks.blocks:
            return
        from peft.functional import cast_adapter_dtype, inject_adapter_in_model

        # Drawn on the CPU whatever the device, and nobody else's random numbers are touched.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(settings.config(blocks.blocks), cast(Any, blocks), _NAME)
        cast_adapter_dtype(blocks, _NAME)
        named = blocks.named_parameters()
        self._parameters = {name: weight for name, weight in named if weight.requires_grad}

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name; none where the part has no blocks."""
        return self._parameters

    def tensors(self) -> Adapter:
        """The adapter as it lies in the blocks, not a copy."""
        if not self._blocks.blocks:
            return {}
        from peft.functional import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(
            self._blocks, adapter_name=_NAME, save_embedding_layers=False
        )
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def load(self, adapter: Adapter) -> None:
        """Overwrite the weights in place.

        Raises:
            AdapterError: other names or shapes than those of this part.
        """
        own = self.tensors()
        check_adapter(adapter, shapes(own))
        for name, tensor in own.items():
            tensor.copy_(adapter[name])


def shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in adapter.items()}


def check_adapter(adapter: Adapter, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse an adapter of other names or shapes, or with values that are no finite numbers.

    Raises:
        AdapterError: naming the first tensor that differs.
    """
    if differing := sorted(adapter.keys() ^ expected.keys()):
        raise AdapterError(
            f"adapter of {len(adapter)} tensors where {len(expected)} are expected, "
            f"first difference {differing[0]}"
        )
    for name, tensor in adapter.items():
        if tuple(tensor.shape) != expected[name]:
            raise AdapterError(
                f"{name}: {list(expected[name])} expected, {list(tensor.shape)} came"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{name}: not all values are finite numbers")
