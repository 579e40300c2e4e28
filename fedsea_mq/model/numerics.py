"""What a party keeps its numbers in: weights, states between the blocks, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fedsea_mq.errors import ConfigError
from fedsea_mq.model.int8_linear import Int8Linear
from fedsea_mq.model.packed_linear import PackedLinear
from fedsea_mq.settings import ModelSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Makes a linear layer of a weight and a bias.
MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], nn.Module]


@dataclass(frozen=True, slots=True)
class Numerics:
    """The dtype and device of the settings, with what follows from them."""

    dtype: str = "fp32"
    device: str = "cpu"
    int8_weights: bool = False
    int8_kv: bool = False
    trains: bool = False
    """Whether gradients must pass: linear layers stay plain, and states between blocks fp32."""

    @classmethod
    def of(cls, model: ModelSettings) -> Numerics:
        """As the settings say, which have been checked."""
        return cls(model.dtype, model.device, model.weights == "int8", model.kv_cache == "int8")

    def check_device(self) -> None:
        """Raise `ConfigError` if torch has no such device on this machine."""
        kind, _, index = self.device.partition(":")
        gpus = torch.cuda.device_count()
        if kind == "cuda" and int(index or 0) >= gpus:
            raise ConfigError(
                f"model.device {self.device}: torch {torch.__version__} has {gpus} GPUs"
            )

    @property
    def weights(self) -> torch.dtype:
        """Of the embedding, and of the linear layers unless they are int8."""
        return DTYPES[self.dtype]

    @property
    def states(self) -> torch.dtype:
        """Of the states between the blocks, of norms and of attention.

        bf16 on a CPU is for what is read from memory, weights and KV cache: to compute attention
        and norms in it is slower, and less exact.
        """
        return torch.float32 if self.trains or self._on_cpu_in_bf16 else self.weights

    @property
    def kv(self) -> torch.dtype:
        """Of the cached keys and values."""
        return torch.int8 if self.int8_kv else self.weights

    @property
    def linear(self) -> MakeLinear | None:
        """What takes the place of plain linear layers; None if nothing does."""
        if self.trains:
            return None
        if self.int8_weights:
            return Int8Linear
        return PackedLinear if self._on_cpu_in_bf16 else None

    def read_as(self, module: nn.Module) -> torch.dtype:
        """The dtype to read a module's tensors in; int8 is rounded to from fp32."""
        if isinstance(module, nn.Linear):
            return torch.float32 if self.int8_weights else self.weights
        return self.weights if isinstance(module, nn.Embedding) else self.states

    @property
    def _on_cpu_in_bf16(self) -> bool:
        return self.dtype == "bf16" and self.device == "cpu"
