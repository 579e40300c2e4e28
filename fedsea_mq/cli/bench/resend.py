"""The way without KV collaboration: the whole sequence is sent again for every token.

This is what the paper's own baseline does: the client sends the hidden states of all positions, and
with `mask` the float attention mask too; the trunk keeps nothing. It is given every advantage that
does not change what it is: transformers' own layers, raw tensors on a direct connection, no noise.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
import zmq
from torch import nn

from fedsea_mq.cli.bench.unsplit import load_unsplit
from fedsea_mq.model.partition import Cut


def serve_resent(folder: str, dtype: str, cut: Cut, announce: Any) -> None:
    """The trunk of the baseline; serves until its process is ended or orphaned."""
    parent = os.getppid()
    layers = _Layers(load_unsplit(folder, dtype))
    blocks = range(cut.head_blocks, layers.count - cut.tail_blocks)
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        announce(socket.bind_to_random_port("tcp://127.0.0.1"))
        while os.getppid() == parent:
            if not socket.poll(1000):
                continue
            states, *mask = (_unpacked(part) for part in socket.recv_multipart())
            with torch.inference_mode():
                hidden = states.view(1, -1, layers.hidden)
                sent = mask[0].view(1, 1, hidden.shape[1], -1) if mask else None
                out = layers.run(hidden.to(layers.dtype), blocks, sent)
            socket.send(_packed(out))


def resend_seconds(
    folder: str, dtype: str, cut: Cut, port: int, *, context: int, tokens: int, mask: bool
) -> float:
    """Mean time of a decoded token at that context."""
    model = load_unsplit(folder, dtype)
    layers = _Layers(model)
    ids = torch.randint(model.config.vocab_size, (1, context))
    with zmq.Context() as zmq_context, zmq_context.socket(zmq.REQ) as socket:
        socket.connect(f"tcp://127.0.0.1:{port}")
        begun = 0.0
        for token in range(tokens + 1):
            if token == 1:
                begun = time.perf_counter()  # the first one warmed both sides up
            with torch.inference_mode():
                hidden = layers.run(model.model.embed_tokens(ids), range(cut.head_blocks))
                parts = [_packed(hidden)]
                if mask:
                    parts.append(_packed(causal_mask(ids.shape[1])))
                socket.send_multipart(parts)
                back = _unpacked(socket.recv()).view(1, -1, layers.hidden).to(layers.dtype)
                out = layers.run(back, range(layers.count - cut.tail_blocks, layers.count))
                logits = model.lm_head(model.model.norm(out[:, -1]))
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        return (time.perf_counter() - begun) / tokens


def causal_mask(positions: int) -> torch.Tensor:
    """`[positions, positions]` in fp32: 0 where a position may look, minus infinity elsewhere."""
    return torch.full((positions, positions), -torch.inf).triu(1)


class _Layers:
    """Runs of a transformers model's decoder layers, without a cache."""

    def __init__(self, model: Any) -> None:
        self._layers: nn.ModuleList = model.model.layers
        self._rotary = model.model.rotary_emb
        self.count = len(self._layers)
        self.hidden = int(model.config.hidden_size)
        self.dtype: torch.dtype = model.dtype

    def run(
        self, hidden: torch.Tensor, blocks: range, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        rotation = self._rotary(hidden, torch.arange(hidden.shape[1])[None])
        mask = None if mask is None else mask.to(self.dtype)
        for block in blocks:
            hidden = self._layers[block](hidden, attention_mask=mask, position_embeddings=rotation)
        return hidden


def _packed(states: torch.Tensor) -> bytes:
    return states.float().contiguous().numpy().tobytes()


def _unpacked(part: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(part, dtype=np.float32).copy())
