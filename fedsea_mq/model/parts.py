"""The three parts as torch modules, each built from its own tensors only.

The layers are transformers' own, instantiated on the meta device (no memory) and given the tensors
of one part. Every part runs a packed batch: `[total positions, hidden]`, spans saying whose.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.int8_linear import Int8Linear
from fedsea_mq.model.kv_cache import KVCache, KVShape
from fedsea_mq.model.numerics import MakeLinear, Numerics
from fedsea_mq.model.packed_linear import PackedLinear
from fedsea_mq.model.partition import LM_HEAD, Cut, Part, block_of, part_of


class BlockRun(nn.Module):
    """Consecutive decoder blocks over the sessions' KV caches; `dtype` is that of the states."""

    def __init__(
        self, layers: Sequence[nn.Module], rotary: nn.Module, kv_shape: KVShape, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.rotary = rotary
        self.kv_shape = kv_shape
        self.dtype = dtype
        self._compiled = compiled_attention(kv_shape)

    def new_cache(self, max_positions: int) -> KVCache:
        """An empty cache for one session."""
        return KVCache(self.kv_shape, max_positions)

    def forward(self, hidden: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        """Run `[total, hidden]` through the blocks; keys and values go to the spans' caches."""
        if not self.layers:
            return hidden
        positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        positions = positions.to(hidden.device)[None]
        packed = hidden[None]
        rotation = self.rotary(packed, positions)
        layout = StepLayout.of(spans, compiled=self._compiled)
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


def load_trunk(checkpoint: Checkpoint, cut: Cut, numerics: Numerics) -> BlockRun:
    """The trunk's blocks. Raises what `Checkpoint.load` raises."""
    return _Loader(checkpoint, cut, numerics).run(Part.TRUNK)


def load_client(checkpoint: Checkpoint, cut: Cut, numerics: Numerics) -> tuple[Head, Tail]:
    """Head and tail; tied embeddings are held once. Raises what `Checkpoint.load` raises."""
    return _Loader(checkpoint, cut, numerics).client()


class _Loader:
    """Builds parts of one checkpoint from a skeleton on the meta device."""

    def __init__(self, checkpoint: Checkpoint, cut: Cut, numerics: Numerics) -> None:
        self._checkpoint = checkpoint
        self._cut = cut
        self._numerics = numerics
        with torch.device("meta"):
            self._skeleton: Any = AutoModelForCausalLM.from_config(
                checkpoint.config, attn_implementation=SPAN_ATTENTION
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
        self._fill(Part.TAIL)
        lm_head = self._skeleton.lm_head
        if make := self._numerics.linear:
            lm_head = make(lm_head.weight, lm_head.bias)
        head = Head(model.embed_tokens, self._assemble(Part.HEAD))
        return head, Tail(self._assemble(Part.TAIL), model.norm, lm_head)

    def _fill(self, part: Part) -> None:
        """Read the part a block at a time: no more than one is held as it was before packing."""
        names = self._expected(part)
        for index in self._cut.blocks(part, self._checkpoint.blocks):
            self._assign([name for name in names if block_of(name) == index])
            if make := self._numerics.linear:
                replace_linears(self._skeleton.model.layers[index], make)
        self._assign([name for name in names if block_of(name) is None])

    def _expected(self, part: Part) -> list[str]:
        """The tensors that the architecture asks for, whatever else the files hold."""
        shared = {LM_HEAD} if self._checkpoint.tied else set()
        return [
            name
            for name in self._skeleton.state_dict()
            if name not in shared and part_of(name, self._cut, self._checkpoint.blocks) is part
        ]

    def _assign(self, names: list[str]) -> None:
        by_dtype: dict[torch.dtype, list[str]] = {}
        for name in names:
            module = self._skeleton.get_submodule(name.rpartition(".")[0])
            by_dtype.setdefault(self._numerics.read_as(module), []).append(name)
        tensors: dict[str, torch.Tensor] = {}
        for dtype, alike in by_dtype.items():
            tensors |= self._checkpoint.load(alike, dtype, self._numerics.device)
        try:
            self._skeleton.load_state_dict(tensors, strict=False, assign=True)
        except RuntimeError as error:
            raise CheckpointError("a tensor's shape is not what config.json says") from error
        self._skeleton.requires_grad_(False)

    def _assemble(self, part: Part) -> BlockRun:
        blocks = self._cut.blocks(part, self._checkpoint.blocks)
        layers = [self._skeleton.model.layers[index] for index in blocks]
        config, numerics = self._checkpoint.config, self._numerics
        # The skeleton's rotary table is on the meta device too: it is computed, not stored.
        rotary = type(self._skeleton.model.rotary_emb)(config=config).to(numerics.device)
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        kv_shape = KVShape(
            blocks, config.num_key_value_heads, head_dim, numerics.kv, numerics.device
        )
        return BlockRun(layers, rotary, kv_shape, numerics.states)


def replace_linears(module: nn.Module, make: MakeLinear) -> None:
    """Replace every `nn.Linear` inside `module` by what `make` makes of its weight and bias."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, make(child.weight, child.bias))
        else:
            replace_linears(child, make)
