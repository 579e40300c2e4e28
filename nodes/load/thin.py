"""Thin clients: the protocol and the bytes of a real one, without a model behind them."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch

from fedsea_mq.errors import MalformedFrame, NotRunning
from fedsea_mq.load.plan import Link, Request
from fedsea_mq.model.wire_states import encode_states
from fedsea_mq.protocol.envelope import SESSION_BYTES, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Accept, Extend, Open, Result
from fedsea_mq.protocol.payload import PayloadSpec
from fedsea_mq.security.client_seals import ClientSeals
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.settings import Settings
from fedsea_mq.transport.direct_links import DirectLinks, DirectPath
from fedsea_mq.transport.loop_socket import Context
from fedsea_mq.transport.requests import Patience, Requests, Traffic
from nodes.load.job import Job
from nodes.load.slow_peer_link import link_over


@dataclass(frozen=True, slots=True)
class ThinModel:
    """All that a thin client knows of a model, and the states that it replays.

    Random states cost the trunk what real ones cost it: nothing there depends on their values.
    """

    fingerprint: str
    spec: PayloadSpec
    parts: tuple[bytes, ...]

    @classmethod
    def random(cls, fingerprint: str, spec: PayloadSpec, positions: int) -> Self:
        """Draw `positions` states."""
        states = torch.randn(positions, spec.hidden)
        return cls(fingerprint, spec, tuple(encode_states(states, spec.dtype)))

    def payload(self, count: int) -> list[bytes]:
        """The wire parts of `count` positions."""
        sizes = self.spec.part_sizes(count)
        return [part[:size] for part, size in zip(self.parts, sizes, strict=True)]


@dataclass(slots=True)
class _Session:
    id: bytes
    traffic: Traffic
    path: DirectPath | None = None


class ThinClient:
    """One connection, and any number of sessions over it. Use with `async with`."""

    def __init__(
        self, settings: Settings, model: ThinModel, link: Link, seed: int, context: Context
    ) -> None:
        self._model = model
        broker, client = settings.broker, settings.client
        max_part_bytes = broker.max_part_mb << 20
        make_link = partial(link_over(link, seed), context=context)
        keyring = Keyring.load(settings.security)
        self._link = make_link(
            broker.clients,
            self._receive,
            max_part_bytes=max_part_bytes,
            keys=keyring.to_broker(broker.clients),
        )
        patience = Patience(client.request_timeout_s, client.give_up_s)
        seals = ClientSeals.of(settings.security)
        self._requests = Requests(self._link.send, patience, broker.at, seals)
        self._direct = DirectLinks(
            make_link,
            self._requests,
            wanted=client.direct,
            max_part_bytes=max_part_bytes,
            keyring=keyring,
        )

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._direct.__aexit__(*reason)
        await self._link.__aexit__(*reason)

    def _receive(self, frame: Frame) -> None:
        self._requests.receive(frame)

    async def run(self, job: Job) -> None:
        """Prefill, then a step for each further token.

        Raises:
            RemoteError: as the broker or the trunk says.
        """
        request, watch = job.request, job.watch
        session = _Session(secrets.token_bytes(SESSION_BYTES), job.traffic)
        try:
            chunk = await self._open(session, request)
            cached = 0
            while cached < request.prompt_tokens:
                count = min(chunk, request.prompt_tokens - cached)
                cached = await self._extend(session, cached, count)
            watch.token(time.monotonic())
            await job.gate()
            watch.decodes(time.monotonic())
            for _ in range(request.new_tokens - 1):
                async with job.turn:
                    cached = await self._extend(session, cached, 1)
                watch.token(time.monotonic())
        finally:
            self._end(session, vanishes=job.vanishes)

    async def _open(self, session: _Session, request: Request) -> int:
        """Open the session; the positions that a frame may have."""
        asked = Open(
            fingerprint=self._model.fingerprint,
            max_positions=request.prompt_tokens + request.new_tokens,
            dtype=self._model.spec.dtype,
        )
        reply = await self._requests.ask(
            Kind.OPEN, asked, session=session.id, traffic=session.traffic
        )
        terms = reply.body(Accept)
        session.path = await self._direct.path(session.id, terms)
        return terms.max_frame_positions

    async def _extend(self, session: _Session, cached: int, count: int) -> int:
        """Send `count` positions and wait for as many outputs; the positions cached then."""
        direct = None if session.path is None else await session.path.settled()
        reply = await self._requests.ask(
            Kind.EXTEND,
            Extend(cached=cached, count=count, returned=count),
            session=session.id,
            payload=self._model.payload(count),
            traffic=session.traffic,
            direct=direct,
        )
        result = reply.body(Result)
        self._model.spec.check(reply.payload, count)
        if result.cached != cached + count:
            raise MalformedFrame(f"result up to {result.cached}, expected {cached + count}")
        return result.cached

    def _end(self, session: _Session, *, vanishes: bool) -> None:
        if session.path is not None:
            session.path.close()
        if vanishes:
            self._requests.forget(session.id)
            return
        with suppress(NotRunning):
            self._requests.close(session.id)
