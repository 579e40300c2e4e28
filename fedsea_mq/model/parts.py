"""The three parts as torch modules, each built from its own tensors only.

The layers are transformers' own, instantiated on the meta device (no memory) and given the tensors
of one part. Every part runs a packed batch: `[total positions, hidden]`, spans saying whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fedsea_mq.errors import CheckpointError
from fedsea_mq.model.attention import (
    SPAN_ATTENTION,
    Span,
    StepLayout,
    compiled_attention,
)
from fedsea_mq.model.candidate_attention import CandidateLayout
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.grouped_lora import GroupedLora, Segment
from fedsea_mq.model.int8_linear import Int8Linear
from fedsea_mq.model.kv_cache import KVCache, KVShape
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.model.packed_linear import PackedLinear
from fedsea_mq.model.partition import LM_HEAD, Cut, Part, block_of, part_of
from fedsea_mq.model.tensor_shard import WHOLE, TensorShard, head_dim


class BlockRun(nn.Module):
    """Consecutive decoder blocks over the sessions' KV caches; `dtype` is that of the states.

    `adapters`, if there are any, are told whose each span is.
    """

    def __init__(
        self, layers: Sequence[nn.Module], rotary: nn.Module, kv_shape: KVShape, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.rotary = rotary
        self.kv_shape = kv_shape
        self.dtype = dtype
        self.adapters: GroupedLora | None = None
        self._compiled = compiled_attention(kv_shape)

    def new_cache(self, max_positions: int) -> KVCache:
        """An empty cache for one session."""
        return KVCache(self.kv_shape, max_positions)

    def forward(self, hidden: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        """Run `[total, hidden]` through the blocks; keys and values go to the spans' caches."""
        if not self.layers:
            return hidden
        positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        layout = StepLayout.of(spans, compiled=self._compiled)
        segments = [Segment(span.adapter, span.count) for span in spans]
        return self._through(hidden, positions, layout, segments)

    def sequences(
        self, hidden: torch.Tensor, layout: PackedLayout, adapter: str | None = None
    ) -> torch.Tensor:
        """Run whole sequences `[total, hidden]` without caches; differentiable."""
        if not self.layers:
            return hidden
        positions = torch.cat([torch.arange(length) for length in layout.lengths])
        segments = [Segment(adapter, length) for length in layout.lengths]
        return self._through(hidden, positions, layout, segments)

    def alternatives(
        self, hidden: torch.Tensor, cache: KVCache, start: int, adapter: str | None = None
    ) -> torch.Tensor:
        """Run `[rows, hidden]`, each row an alternative for position `start`.

        Each sees what `cache` holds of the positions before, and itself. Nothing is written.
        """
        if not self.layers:
            return hidden
        rows = hidden.shape[0]
        layout = CandidateLayout(cache, start)
        return self._through(hidden, torch.full((rows,), start), layout, [Segment(adapter, rows)])

    def _through(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        layout: StepLayout | PackedLayout | CandidateLayout,
        segments: Sequence[Segment],
    ) -> torch.Tensor:
        """`[total, hidden]` at these positions `[total]` through all layers."""
        packed = hidden[None]
        rotation = self.rotary(packed, positions.to(hidden.device)[None])
        told = nullcontext() if self.adapters is None else self.adapters.told(segments)
        with told:
            for layer in self.layers:
                packed = layer(packed, position_embeddings=rotation, layout=layout)
        return packed[0]


class Head(nn.Module):
    """Embedding and the first blocks."""

    def __init__(self, embedding: nn.Embedding, run: BlockRun) -> None:
        super().__init__()
        self.embedding = embedding
        self.run = run

    def forward(self, ids: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        """Token ids `[total]` to hidden states `[total, hidden]`."""
        states = self.embedding(ids).to(self.run.dtype)
        return cast(torch.Tensor, self.run(states, spans))


class Tail(nn.Module):
    """The last blocks, the final norm and lm_head."""

    def __init__(self, run: BlockRun, norm: nn.Module, lm_head: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.norm = norm
        self.lm_head = lm_head

    def forward(self, hidden: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        """The trunk's outputs `[total, hidden]` through the last blocks, before the norm."""
        return cast(torch.Tensor, self.run(hidden, spans))

    def logits(self, hidden: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """fp32 logits `[read, vocab]` of each span's last positions.

        lm_head is the widest matmul of all, so only the rows that are read go through it.
        """
        states = split_spans(self(hidden, spans), spans)
        read = [rows[-span.read :] for rows, span in zip(states, spans, strict=True)]
        logits = self.lm_head(self.norm(torch.cat(read))).float()
        return torch.split(logits, [span.read for span in spans])


def split_spans(states: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
    """`[total, hidden]` as one `[count, hidden]` view a span."""
    return torch.split(states, [span.count for span in spans])


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of the weights that the modules hold; what several share counts once."""
    plain = {id(p): p.nbytes for module in modules for p in module.parameters()}
    packed = {
        id(child): child.nbytes
        for module in modules
        for child in module.modules()
        if isinstance(child, (PackedLinear, Int8Linear))
    }
    return sum(plain.values()) + sum(packed.values())


def load_trunk(
    checkpoint: Checkpoint,
    cut: Cut,
    numerics: Numerics,
    only: range | None = None,
    shard: TensorShard = WHOLE,
) -> BlockRun:
    """The trunk's blocks, or `only` some of them; or a rank's share of each.

    The outputs of a share are shares of sums.

    Raises: what `Checkpoint.load` raises, `UnevenShards`, and `ConfigError` without the device.
    """
    return _Loader(checkpoint, cut, numerics, only, shard).run(Part.TRUNK)


def load_client(checkpoint: Checkpoint, cut: Cut, numerics: Numerics) -> tuple[Head, Tail]:
    """Head and tail; tied embeddings are held once. Raises as `load_trunk`."""
    return _Loader(checkpoint, cut, numerics).client()


class _Loader:
    """Builds parts of one checkpoint from a skeleton on the meta device."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        cut: Cut,
        numerics: Numerics,
        only: range | None = None,
        shard: TensorShard = WHOLE,
    ) -> None:
        numerics.check_device()
        self._checkpoint = checkpoint
        self._shard = shard
        self._config = shard.narrowed(checkpoint.config)
        self._cut = cut
        self._numerics = numerics
        self._only = only
        with torch.device("meta"):
            # In the dtype that is the default already: any other would be that of the whole process
            # meanwhile, and of what other parties' threads make. Each tensor is read in its own.
            self._skeleton: Any = AutoModelForCausalLM.from_config(
                self._config,
                attn_implementation=SPAN_ATTENTION,
                dtype=torch.get_default_dtype(),
            )
        self._skeleton.requires_grad_(False).eval()

    def run(self, part: Part) -> BlockRun:
        self._fill(part)
        return self._assemble(part)

    def client(self) -> tuple[Head, Tail]:
        self._fill(Part.HEAD)
        model = self._skeleton.model
        if self._checkpoint.tied:
            self._skeleton.lm_head.weight = model.embed_tokens.weight
            self._pack(LM_HEAD.rpartition(".")[0])
        self._fill(Part.TAIL)
        head = Head(model.embed_tokens, self._assemble(Part.HEAD))
        return head, Tail(self._assemble(Part.TAIL), model.norm, self._skeleton.lm_head)

    def _fill(self, part: Part) -> None:
        """Read a part, a module at a time: no more than one is held as it was before packing."""
        by_module: dict[str, list[str]] = {}
        for name in self._expected(part):
            by_module.setdefault(name.rpartition(".")[0], []).append(name)
        for path, names in by_module.items():
            self._assign(path, names)
            self._pack(path)

    def _expected(self, part: Part) -> list[str]:
        """The tensors that the architecture asks for, whatever else the files hold."""
        shared = {LM_HEAD} if self._checkpoint.tied else set()
        return [
            name
            for name in self._skeleton.state_dict()
            if name not in shared
            and part_of(name, self._cut, self._checkpoint.blocks) is part
            and (self._only is None or block_of(name) in self._only)
        ]

    def _assign(self, path: str, names: list[str]) -> None:
        module = self._skeleton.get_submodule(path)
        dtype, device = self._numerics.read_as(module), self._numerics.device
        tensors = self._checkpoint.load(
            names, dtype, device, self._shard, keep=not self._packs(module)
        )
        own = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}
        try:
            module.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise CheckpointError("a tensor's shape is not what config.json says") from error
        module.requires_grad_(False)

    def _packs(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and self._numerics.linear is not None

    def _pack(self, path: str) -> None:
        """Put what the numerics say in the place of a linear layer."""
        module = self._skeleton.get_submodule(path)
        if isinstance(module, nn.Linear) and (make := self._numerics.linear):
            self._skeleton.set_submodule(path, make(module.weight, module.bias))

    def _assemble(self, part: Part) -> BlockRun:
        blocks = self._only or self._cut.blocks(part, self._checkpoint.blocks)
        layers = [self._skeleton.model.layers[index] for index in blocks]
        config, numerics = self._config, self._numerics
        # The skeleton's rotary table is on the meta device too: it is computed, not stored.
        rotary = type(self._skeleton.model.rotary_emb)(config=config).to(numerics.device)
        kv_shape = KVShape(
            blocks, config.num_key_value_heads, head_dim(config), numerics.kv, numerics.device
        )
        return BlockRun(layers, rotary, kv_shape, numerics.states)
