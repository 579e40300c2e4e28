"""Somebody with a key, or none, who speaks the protocol by hand."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final, Self

from fedsea_mq.errors import RemoteError
from fedsea_mq.protocol.envelope import NO_SESSION, Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Body, Extend, Open
from fedsea_mq.protocol.payload import PayloadSpec, WireDtype
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.settings import Settings
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.requests import Patience, Requests

_PATIENCE: Final = Patience(resend_s=1.0, give_up_s=5.0)
DTYPE: Final = WireDtype.FP32


class Intruder:
    """A link to the broker with the key of the settings. Use with `async with`."""

    def __init__(self, settings: Settings) -> None:
        broker = settings.broker
        self._link = PeerLink(
            broker.clients,
            self._receive,
            max_part_bytes=broker.max_part_mb << 20,
            keys=Keyring.load(settings.security).to_broker(broker.clients),
            on_refused=self._refused,
        )
        self._requests = Requests(self._link.send, _PATIENCE)
        self._stack = AsyncExitStack()
        self.answers: list[Frame] = []
        """What came that answers none of `ask`."""

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._link)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _receive(self, frame: Frame) -> None:
        self.answers.append(frame)
        self._requests.receive(frame)

    def _refused(self, error: RemoteError) -> None:
        self._requests.refuse(error)

    async def ask(
        self,
        kind: Kind,
        body: Body,
        session: bytes = NO_SESSION,
        payload: Sequence[bytes] = (),
    ) -> Frame:
        """The answer to a request. Raises what it is refused with."""
        return await self._requests.ask(kind, body, session=session, payload=payload)

    async def open(self, fingerprint: str, positions: int) -> bytes:
        """A session of its own."""
        session = secrets.token_bytes(16)
        await self.ask(Kind.OPEN, Open(fingerprint, positions, DTYPE), session)
        return session

    def throw(self, parts: Parts) -> None:
        """Send a message that may be no frame."""
        self._link.send(parts)


def extend(session: bytes, hidden: int, cached: int = 0, seq: int = 1 << 20) -> Frame:
    """One position of zeros."""
    (size,) = PayloadSpec(DTYPE, hidden).part_sizes(1)
    body = Extend(cached=cached, count=1, returned=1)
    return Frame.build(Kind.EXTEND, body, session=session, seq=seq, payload=[bytes(size)])


def with_body(frame: Frame, body: bytes) -> Parts:
    """The frame's parts with another body."""
    envelope = frame.envelope
    head = Envelope(envelope.kind, envelope.session, envelope.seq).encode()
    return [head, body, *frame.payload]
