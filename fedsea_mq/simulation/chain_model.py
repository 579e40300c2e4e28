"""A model of three parts that is a chain of numbers: its output tells every position that it saw.

Each part keeps, as its KV cache, a running digest of the positions so far. A position that is
missing, doubled, out of place or of another session changes every output after it, and the logits
carry that output beside the token. All numbers are whole and below 2**23, so fp32 holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import torch

from fedsea_mq.model.attention import Span
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype

Pair = tuple[int, int]
HIDDEN: Final = 2
VOCAB: Final = 5
FINGERPRINT: Final = "c4" * 32
MAX_POSITIONS: Final = 4096
SPEC: Final = PayloadSpec(WireDtype.FP32, HIDDEN)
# The largest prime below 2**23.
_PRIME: Final = 8_388_593
_EMPTY: Final = (1, 2)
_HEAD, TRUNK, _TAIL = 11, 23, 37


def mixed(before: Pair, given: Pair, part: int) -> Pair:
    """The digest of a position, from the one before it and what it was given."""
    one = (before[0] * 69_069 + given[0] * 7_919 + before[1] + part) % _PRIME
    other = (before[1] * 22_695 + given[1] * 104_729 + one) % _PRIME
    return one, other


@dataclass(slots=True, eq=False)
class ChainCache:
    """The digests of the positions that a part has cached."""

    rows: list[Pair] = field(default_factory=list)

    def run(self, start: int, given: Sequence[Pair], part: int) -> list[Pair]:
        """The digests of the positions from `start` on. Raises `ValueError` for a gap."""
        if start > len(self.rows):
            raise ValueError(f"positions from {start} on, cached are {len(self.rows)}")
        del self.rows[start:]
        before = self.rows[-1] if self.rows else _EMPTY
        for pair in given:
            before = mixed(before, pair, part)
            self.rows.append(before)
        return self.rows[start:]


@dataclass(frozen=True, slots=True)
class ChainModel:
    """The three parts. A tail without blocks caches nothing, and sees only what it reads."""

    tail_blocks: int

    def head(self, ids: torch.Tensor, spans: Sequence[Span]) -> list[torch.Tensor]:
        """Token ids `[total]` to states `[count, 2]`, a tensor a session."""
        return _each(spans, [(token, 0) for token in ids.tolist()], _HEAD)

    def trunk(self, states: torch.Tensor, spans: Sequence[Span]) -> list[torch.Tensor]:
        """States `[total, 2]` to outputs `[count, 2]`, a tensor a session."""
        return _each(spans, _pairs(states), TRUNK)

    def tail(self, states: torch.Tensor, spans: Sequence[Span]) -> list[torch.Tensor]:
        """Outputs `[total, 2]` to logits `[read, vocab]`, a tensor a session."""
        pairs, logits, at = _pairs(states), [], 0
        for span in spans:
            given = pairs[at : at + span.count]
            at += span.count
            rows = _cache(span).run(span.start, given, _TAIL) if self.tail_blocks else given
            logits.append(torch.tensor([_logits(row) for row in rows[-span.read :]]))
        return logits

    def expected(self, tokens: Sequence[int]) -> list[Pair]:
        """What the logits after each of these tokens carry, where nothing disturbs."""
        head, trunk, tail = ChainCache(), ChainCache(), ChainCache()
        states = head.run(0, [(token, 0) for token in tokens], _HEAD)
        outputs = trunk.run(0, states, TRUNK)
        return tail.run(0, outputs, _TAIL) if self.tail_blocks else outputs

    def generated(self, prompt: Sequence[int], new: int) -> list[int]:
        """The tokens that follow a prompt, by greedy decoding, where nothing disturbs."""
        head, trunk, tail = ChainCache(), ChainCache(), ChainCache()
        fresh, tokens, at = list(prompt), [], 0
        for _ in range(new):
            states = head.run(at, [(token, 0) for token in fresh], _HEAD)
            outputs = trunk.run(at, states, TRUNK)
            rows = tail.run(at, outputs, _TAIL) if self.tail_blocks else outputs
            at += len(fresh)
            fresh = [next_token(rows[-1])]
            tokens += fresh
        return tokens


def next_token(row: Pair) -> int:
    """The token that logits with this digest are largest at."""
    return row[0] % VOCAB


def digest_in(logits: torch.Tensor) -> Pair:
    """The digest that logits `[vocab]` carry."""
    token = int(logits.argmax())
    return int(-logits[(token + 1) % VOCAB]), int(-logits[(token + 2) % VOCAB])


def _logits(row: Pair) -> list[float]:
    token = next_token(row)
    values = [-1.0] * VOCAB
    values[token] = 1.0
    values[(token + 1) % VOCAB] = -float(row[0])
    values[(token + 2) % VOCAB] = -float(row[1])
    return values


def _each(spans: Sequence[Span], given: Sequence[Pair], part: int) -> list[torch.Tensor]:
    outputs, at = [], 0
    for span in spans:
        rows = _cache(span).run(span.start, given[at : at + span.count], part)
        at += span.count
        outputs.append(torch.tensor(rows, dtype=torch.float32))
    return outputs


def _cache(span: Span) -> ChainCache:
    cache: Any = span.cache
    assert isinstance(cache, ChainCache)
    return cache


def _pairs(states: torch.Tensor) -> list[Pair]:
    return [(int(one), int(other)) for one, other in states.tolist()]


def part_like(blocks: int, kv_bytes: int) -> Any:
    """What nodes ask of a part beside running it: its blocks, dtype and KV cache."""
    shape = SimpleNamespace(bytes_per_position=kv_bytes, blocks=range(1, 2), device="cpu")
    return SimpleNamespace(
        layers=[None] * blocks,
        dtype=torch.float32,
        kv_shape=shape,
        new_cache=lambda positions: ChainCache(),
    )
