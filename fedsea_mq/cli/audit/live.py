"""A live system whose trunk node is in this process, and keeps what it receives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch

from fedsea_mq.cli.audit.victims import Victim
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.model.attention import Span
from fedsea_mq.model.kv_cache import KVCache
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.privacy.attacks.attack import Seen
from fedsea_mq.privacy.noise import NoiseSource
from fedsea_mq.settings import Settings
from nodes.client import ClientNode
from nodes.trunk import TrunkNode
from nodes.trunk.engine import TrunkEngine

_NAME = "curious"


class CuriousEngine(TrunkEngine):
    """Computes as any trunk does, and keeps each session's states as they came off the wire."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, _NAME)
        self._kept: dict[KVCache, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}

    def run_blocks(self, states: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        """See `TrunkEngine.run_blocks`."""
        outputs = super().run_blocks(states, spans)
        came = torch.split(states, [span.count for span in spans])
        for span, rows, made in zip(spans, came, outputs, strict=True):
            kept = self._kept.setdefault(span.cache, [])
            kept.append((span.start, rows.float().cpu().clone(), made.float().cpu().clone()))
        return outputs

    def take(self, prompt: int) -> Seen:
        """The one session since the last call, whose prompt had as many positions."""
        (kept,) = self._kept.values()
        self._kept = {}
        count = max(start + rows.shape[0] for start, rows, _ in kept)
        received, outputs = (torch.empty(count, kept[0][1].shape[1]) for _ in range(2))
        for start, rows, made in kept:
            received[start : start + rows.shape[0]] = rows
            outputs[start : start + rows.shape[0]] = made
        return Seen(received, outputs, prompt)

    def forget(self) -> None:
        """Keep nothing of what was received so far."""
        self._kept = {}


@dataclass(frozen=True, slots=True)
class Captured:
    """What the trunk saw of a victim, and the tokens that it was of, answer included."""

    seen: Seen
    tokens: tuple[int, ...]
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LiveSystem:
    """`settings` name the broker that runs."""

    settings: Settings
    engine: CuriousEngine

    async def capture(
        self, settings: Settings, victims: Sequence[Victim], answer_tokens: int
    ) -> tuple[list[Captured], NoiseSource]:
        """Have a new client node ask for an answer to each victim's prompt; and its noise.

        `settings` are those of this system but for what is the client's own.
        """
        sampling = SamplingSettings(max_new_tokens=answer_tokens)
        found = []
        self.engine.forget()
        async with ClientNode(settings) as client:
            for victim in victims:
                answer = [token.id async for token in client.generate(victim.tokens, sampling)]
                seen = self.engine.take(len(victim.tokens))
                found.append(_captured(seen, (*victim.tokens, *answer), victim.secrets))
            return found, client.model.noise


def _captured(seen: Seen, tokens: tuple[int, ...], secrets: tuple[str, ...]) -> Captured:
    """Where both are known: last tokens are not sent, and last guesses may be of no token."""
    count = min(len(tokens), seen.received.shape[0])
    sent = Seen(seen.received[:count], seen.outputs[:count], seen.prompt)
    return Captured(sent, tokens[:count], secrets)


@asynccontextmanager
async def live_system(settings: Settings) -> AsyncIterator[LiveSystem]:
    """A broker in a process of its own, and a trunk node here, at the cut of the settings."""
    async with LocalSystem(settings, trunks=0) as system:
        engine = CuriousEngine(system.settings)
        async with TrunkNode(system.settings.replace(trunk={"name": _NAME}), engine) as node:
            await node.registered()
            yield LiveSystem(system.settings, engine)
