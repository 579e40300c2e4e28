"""The trunk's engine alone: its steps, its attention and its matrix products, without a network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch

from fedsea_mq.cli.bench.machine import median_seconds
from fedsea_mq.model.attention import Span
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.decode_attention import DecodeRows, decode_attention
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.packed_linear import PackedLinear
from fedsea_mq.model.partition import Cut, trunk_blocks
from fedsea_mq.model.parts import BlockRun, load_trunk
from fedsea_mq.settings import Settings


def load_run(settings: Settings) -> BlockRun:
    """The trunk of the settings, or the stage of it."""
    model = settings.model
    cut, checkpoint = Cut(model.head_blocks, model.tail_blocks), Checkpoint.open(model.path)
    own = trunk_blocks(cut, checkpoint.blocks, settings.trunk.blocks)
    return load_trunk(checkpoint, cut, Numerics.of(model), own)


def filled_caches(run: BlockRun, batch: int, context: int, room: int) -> list[KVCache]:
    """Caches of sessions that have `context` positions and room for more."""
    shape = run.kv_shape
    states = torch.randn(shape.kv_heads, context + room, shape.head_dim)
    caches = [run.new_cache(context + room) for _ in range(batch)]
    for cache in caches:
        for block in shape.blocks:
            cache.write(block, 0, states, states)
    return caches


def step_seconds(run: BlockRun, hidden: int, batch: int, context: int, steps: int) -> float:
    """Median step of sessions that decode in lockstep, their contexts growing with each step."""
    caches = filled_caches(run, batch, context, steps + 1)
    states = torch.randn(batch, hidden)
    taken: list[float] = []
    with torch.inference_mode():
        for step in range(steps + 1):
            begun = time.perf_counter()
            run(states, [Span(cache, context + step, 1) for cache in caches])
            taken.append(time.perf_counter() - begun)
    return median(taken[1:])


def attention_seconds(run: BlockRun, batch: int, context: int) -> tuple[float, int]:
    """Time of one step's attention over all blocks, and the bytes of keys and values it reads."""
    shape = run.kv_shape
    caches = filled_caches(run, batch, context, 1)
    rows = DecodeRows.of([Span(cache, context, 1) for cache in caches])
    q, k, v = torch.randn(3, batch, shape.kv_heads, shape.head_dim).unbind()

    def attend() -> None:
        for block in shape.blocks:
            decode_attention(q, k, v, rows, block=block, scaling=0.125, window=None)

    return median_seconds(attend), batch * (context + 1) * shape.bytes_per_position


def linears_seconds(run: BlockRun, batch: int) -> tuple[float, int]:
    """Time of one step's matrix products over all blocks, and their floating-point operations."""
    products = _products(run)
    inputs = {size: torch.randn(batch, size) for size in {one.in_features for one in products}}

    def multiply() -> None:
        for product in products:
            product(inputs[product.in_features])

    flops = sum(2 * batch * one.in_features * one.out_features for one in products)
    with torch.inference_mode():
        return median_seconds(multiply), flops


def _products(run: BlockRun) -> Sequence[PackedLinear]:
    return [module for module in run.modules() if isinstance(module, PackedLinear)]
