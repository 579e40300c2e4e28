"""What a cut will cost: latency, bytes, memory, and what a trunk node then brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsea_mq.load.plan import Link
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.planning.machine import Machine
from fedsea_mq.planning.traffic import Bytes, Chunk, RequestTraffic, Terms, prompt_chunks


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for: a request's tokens, and how many sessions a node serves at once."""

    prompt: int
    new: int
    sessions: int = 1

    @property
    def positions(self) -> int:
        """Of one session; the last token is not cached."""
        return self.prompt + self.new - 1

    @property
    def mean_context(self) -> float:
        """Cached positions before a decode step, on average over the request."""
        return self.prompt + (self.new - 2) / 2 if self.new > 1 else self.prompt


@dataclass(frozen=True, slots=True)
class Room:
    """What a trunk node gives sessions room for."""

    kv_bytes: int
    sessions: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """One cut. Times and bytes are of a session alone, unless `sessions` are named.

    `node_sessions` is how many a node has room for; `sessions` of them, at most as many as are
    asked for, decode together at `shared_tpot_s`, and bring `node_tokens_per_s`.
    """

    cut: Cut
    ttft_s: float
    tpot_s: float
    request: Bytes
    token: Bytes
    client_bytes: int
    trunk_bytes: int
    node_sessions: int
    sessions: int
    shared_tpot_s: float
    node_tokens_per_s: float

    def cost_per_million(self, price_per_hour: float) -> float | None:
        """Of new tokens, of a node at that price; None where a node has room for no session."""
        if not self.node_tokens_per_s:
            return None
        return price_per_hour / (self.node_tokens_per_s * 3600) * 1e6


@dataclass(frozen=True, slots=True)
class Forecaster:
    """Predicts a request's cost at any cut; see `docs/how-to/choose-a-cut.md` for the formulas."""

    client: Machine
    trunk: Machine
    link: Link
    demand: Demand
    terms: Terms
    room: Room

    def forecast(self, cut: Cut) -> Forecast:
        """Raises `IllegalCut`."""
        demand = self.demand
        chunks = self._chunks(cut)
        traffic = RequestTraffic(self.terms, chunks, demand.new)
        steps = max(1, demand.new - 1)
        token = Bytes(round(traffic.steps.up / steps), round(traffic.steps.down / steps))
        fits = self._node_sessions(cut)
        sessions = min(demand.sessions, fits)
        ttft_s = self._ttft_s(cut, chunks, traffic)
        shared_s = self._token_s(cut, token, max(1, sessions))
        return Forecast(
            cut=cut,
            ttft_s=ttft_s,
            tpot_s=self._token_s(cut, token, 1),
            request=traffic.whole,
            token=token,
            client_bytes=self._client_bytes(cut, chunks),
            trunk_bytes=self._trunk_bytes(cut, sessions),
            node_sessions=fits,
            sessions=sessions,
            shared_tpot_s=shared_s,
            node_tokens_per_s=self._tokens_per_s(cut, chunks, sessions, ttft_s, shared_s),
        )

    def _chunks(self, cut: Cut) -> list[Chunk]:
        return prompt_chunks(
            self.demand.prompt, self.terms.frame_positions, tail_caches=cut.tail_blocks > 0
        )

    def _trunk_blocks(self, cut: Cut) -> int:
        return len(cut.blocks(Part.TRUNK, self.trunk.holdings.of.blocks))

    def _ttft_s(self, cut: Cut, chunks: Sequence[Chunk], traffic: RequestTraffic) -> float:
        """Opening the session, then each chunk all the way round, then the first token."""
        opening_s = self.client.speed.system.open_s + self._on_link_s(traffic.opening)
        prompt_s = sum(
            self._chunk_s(cut, chunk) + self._on_link_s(size)
            for chunk, size in zip(chunks, traffic.chunks, strict=True)
        )
        return opening_s + prompt_s + self.client.logits_s

    def _chunk_s(self, cut: Cut, chunk: Chunk) -> float:
        head_s = self.client.chunk_s(cut.head_blocks, chunk.count, chunk.start)
        trunk_s = self.trunk.chunk_s(self._trunk_blocks(cut), chunk.count, chunk.start)
        tail_s = self.client.chunk_s(cut.tail_blocks, chunk.count, chunk.start)
        return head_s + self._between_s(chunk.count) + trunk_s + tail_s

    def _token_s(self, cut: Cut, token: Bytes, sessions: int) -> float:
        """A decode step all the way round, where the trunk runs so many sessions together."""
        context = self.demand.mean_context
        head_s = self.client.step_s(cut.head_blocks, 1, context)
        trunk_s = self.trunk.step_s(self._trunk_blocks(cut), sessions, context)
        tail_s = self.client.step_s(cut.tail_blocks, 1, context)
        around_s = self._between_s(1) + self._on_link_s(token)
        return head_s + around_s + trunk_s + tail_s + self.client.logits_s

    def _between_s(self, positions: int) -> float:
        """What lies between the blocks, the link apart."""
        client, trunk = self.client.speed.system, self.trunk.speed.system
        return self.client.states_s(positions) + trunk.relay_s + client.token_s

    def _on_link_s(self, size: Bytes) -> float:
        """Delay there and back, and the time that the bytes are on the wire."""
        wire_s = 0.0 if self.link.mbps is None else (size.up + size.down) * 8e-6 / self.link.mbps
        return 2 * self.link.delay_ms / 1000 + wire_s

    def _client_bytes(self, cut: Cut, chunks: Sequence[Chunk]) -> int:
        weights = self.client.holdings.client_bytes(cut)
        longest = max(chunk.count for chunk in chunks)
        blocks = cut.head_blocks + cut.tail_blocks
        return self.client.client_bytes(weights, self.demand.positions, blocks, longest)

    def _trunk_bytes(self, cut: Cut, sessions: int) -> int:
        """With the keys and values of so many sessions, and a step of one frame."""
        held, demand = self.trunk.holdings, self.demand
        kv = sessions * demand.positions * held.kv_bytes(self._trunk_blocks(cut))
        step = held.working_bytes(min(demand.prompt, self.terms.frame_positions))
        return self.trunk.speed.system.trunk_process_bytes + held.trunk_bytes(cut) + kv + step

    def _node_sessions(self, cut: Cut) -> int:
        a_position = self.trunk.holdings.kv_bytes(self._trunk_blocks(cut))
        return min(self.room.kv_bytes // a_position // self.demand.positions, self.room.sessions)

    def _tokens_per_s(
        self, cut: Cut, chunks: Sequence[Chunk], sessions: int, ttft_s: float, tpot_s: float
    ) -> float:
        """Of a node that serves so many sessions, one request after the other.

        No more than the trunk can compute, and no more than the sessions ask for.
        """
        if not sessions:
            return 0.0
        demand, blocks = self.demand, self._trunk_blocks(cut)
        prompt_s = sum(self.trunk.chunk_s(blocks, one.count, one.start) for one in chunks)
        step_s = self.trunk.step_s(blocks, sessions, demand.mean_context)
        steps = demand.new - 1
        computing_s = prompt_s + steps * step_s / sessions
        waiting_s = (ttft_s + steps * tpot_s) / sessions
        return demand.new / max(computing_s, waiting_s)
