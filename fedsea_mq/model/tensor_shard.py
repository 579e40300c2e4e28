"""One rank's share of the blocks' tensors, where several ranks compute each block together.

Heads and the MLP's inner features are dealt out in equal runs. So the layers that lead to them are
cut by their outputs, the layers that lead back by their inputs, and what comes out of attention and
of the MLP is a share of a sum. A rank's blocks are those of a model that is as wide outside and
narrower inside. Norms are whole on every rank.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

import torch
from transformers import PreTrainedConfig

from fedsea_mq.errors import UnevenShards

_CUT_BY_OUTPUTS: Final = frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
_CUT_BY_INPUTS: Final = frozenset({"o_proj", "down_proj"})
# By the kind of tensor, the dimension that is the layer's outputs, and that of its inputs. What has
# none of the one that the layer is cut by is whole on every rank.
_OUTPUTS: Final = {"weight": 0, "bias": 0, "lora_B.weight": 0}
_INPUTS: Final = {"weight": 1, "lora_A.weight": 1}
_DEALT_OUT: Final = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


@dataclass(frozen=True, slots=True)
class TensorShard:
    """The share of `rank`, from 0, of `ranks`."""

    rank: int = 0
    ranks: int = 1

    def narrowed(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The config of a model whose blocks are this share.

        Raises:
            UnevenShards: heads, KV heads or the MLP's features cannot be dealt out evenly.
        """
        if self.ranks == 1:
            return config
        own = copy.deepcopy(config)
        # Elsewhere it follows from the number of heads, which changes.
        own.head_dim = head_dim(config)
        for key in _DEALT_OUT:
            whole = int(getattr(config, key))
            if whole % self.ranks:
                raise UnevenShards(f"{key} is {whole}: not a multiple of {self.ranks} ranks")
            setattr(own, key, whole // self.ranks)
        return own

    def part(self, name: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Where this share lies in the tensor of that name, base or LoRA, and that whole shape.

        Raises:
            UnevenShards: the dimension that is cut is not a multiple of the ranks.
        """
        axis = _axis(name)
        if axis is None or self.ranks == 1:
            return tuple(slice(size) for size in shape)
        if shape[axis] % self.ranks:
            raise UnevenShards(f"{name} is {list(shape)}: dimension {axis} for {self.ranks} ranks")
        own = shape[axis] // self.ranks
        parts = [slice(size) for size in shape]
        parts[axis] = slice(self.rank * own, (self.rank + 1) * own)
        return tuple(parts)

    def of(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """This share of a whole tensor, and nothing that keeps the rest. Raises as `part`."""
        own = tensor[self.part(name, tuple(tensor.shape))]
        return own if own.shape == tensor.shape else own.clone()

    def whole_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor that a share of this shape is of."""
        axis = _axis(name)
        return tuple(size * self.ranks if i == axis else size for i, size in enumerate(shape))

    def leaves_out(self, name: str) -> bool:
        """Whether rank 0 alone adds it: what every rank added would be in the sum each time."""
        layer, kind = _layer_and_kind(name)
        return self.rank > 0 and layer in _CUT_BY_INPUTS and kind == "bias"


WHOLE: Final = TensorShard()


def head_dim(config: PreTrainedConfig) -> int:
    """Features of one attention head."""
    said = getattr(config, "head_dim", None)
    return int(said or config.hidden_size // config.num_attention_heads)


def _axis(name: str) -> int | None:
    """The dimension in which the tensor is cut; None if it is whole on every rank."""
    layer, kind = _layer_and_kind(name)
    if layer in _CUT_BY_OUTPUTS:
        return _OUTPUTS.get(kind)
    return _INPUTS.get(kind) if layer in _CUT_BY_INPUTS else None


def _layer_and_kind(name: str) -> tuple[str, str]:
    """`...self_attn.q_proj.lora_A.weight` as `q_proj` and `lora_A.weight`."""
    path, _, kind = name.rpartition(".")
    if path.endswith((".lora_A", ".lora_B")):
        path, _, lora = path.rpartition(".")
        kind = f"{lora}.{kind}"
    return path.rpartition(".")[2], kind
