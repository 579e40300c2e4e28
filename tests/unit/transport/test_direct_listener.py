"""A node's own door for clients, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from fedsea_mq.errors import EndpointUnavailable, MalformedFrame, NotTrusted, UnsupportedVersion
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Nothing
from fedsea_mq.security.identity import ANYBODY, Identity, Party
from fedsea_mq.security.keyring import DoorKeys, LinkKeys
from fedsea_mq.security.keys import SecretKey
from fedsea_mq.security.trust import AllowList, Trusted
from fedsea_mq.transport.direct_listener import DirectListener
from fedsea_mq.transport.link import PeerLink
from tests.integration.systems import until

S1 = b"1" * 16
ASK = Frame.build(Kind.RENEW, Nothing(), session=S1, seq=5).parts()
ANSWER = Frame.build(Kind.RENEWED, Nothing(), session=S1, seq=5).parts()


@dataclass
class Door:
    """A listener that answers each renewal, and what came of it."""

    most: int = 8
    asked: list[bytes] = field(default_factory=list)
    undelivered: list[Parts] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = DirectListener(
            "tcp://127.0.0.1:*",
            self.answer,
            self.undelivered.append,
            max_part_bytes=1 << 16,
            max_queued=16,
            max_connections=self.most,
        )

    def answer(self, frame: Frame, peer: bytes, who: Identity) -> None:
        assert who is ANYBODY
        self.asked.append(peer)
        said = frame.envelope
        renewed = Frame.build(Kind.RENEWED, Nothing(), session=said.session, seq=said.seq)
        self.listener.send(renewed.parts(), peer)


@asynccontextmanager
async def knocking(door: Door, got: list[Frame]) -> AsyncIterator[PeerLink]:
    link = PeerLink(door.listener.endpoint, got.append, max_part_bytes=1 << 16)
    async with link:
        yield link


async def test_each_client_gets_its_own_answers_though_they_came_in_one_message() -> None:
    door, got, others = Door(), list[Frame](), list[Frame]()
    async with door.listener, knocking(door, got) as anna, knocking(door, others) as bert:
        for _ in range(3):
            anna.send(ASK)
        bert.send(ASK)
        await until(lambda: len(got) == 3 and len(others) == 1)
    assert [frame.parts() for frame in got] == [ANSWER] * 3
    assert len(set(door.asked)) == 2


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([b"garbage", b""], MalformedFrame),
        ([b"\x94\x7f\x08\xc4\x00\x00", b"\x00\x80"], UnsupportedVersion),
        ([ASK[0]], MalformedFrame),
        ([Envelope(Kind.BUNDLE).encode(), b"\x93", b""], MalformedFrame),
    ],
)
async def test_what_is_no_frame_is_told_so(parts: Parts, error: type[Exception]) -> None:
    door, got = Door(), list[Frame]()
    async with door.listener, knocking(door, got) as link:
        link.send(parts)
        await until(lambda: len(got) == 1)
        assert type(got[0].refusal()) is error
        link.send(ASK)
        await until(lambda: len(got) == 2)
    assert got[1].envelope.kind is Kind.RENEWED


async def test_what_cannot_be_delivered_is_given_back() -> None:
    door, got = Door(), list[Frame]()
    async with door.listener:
        async with knocking(door, got) as link:
            link.send(ASK)
            await until(lambda: len(got) == 1)
        (peer,) = door.asked
        while not door.undelivered:  # until the connection's end was noticed
            door.listener.send(ANSWER, peer)
            await asyncio.sleep(0.01)
    assert door.undelivered[0] == ANSWER


async def test_connections_beyond_the_limit_are_refused_until_others_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = Door(most=2)
    got = [list[Frame]() for _ in range(3)]
    async with door.listener, AsyncExitStack() as stack:
        first = await stack.enter_async_context(knocking(door, got[0]))
        async with knocking(door, got[1]) as second:
            first.send(ASK)
            second.send(ASK)
            await until(lambda: bool(got[0] and got[1]))
            third = await stack.enter_async_context(knocking(door, got[2]))
            third.send(ASK)
            await until(lambda: "connection refused" in caplog.text)
            first.send(ASK)
            await until(lambda: len(got[0]) == 2)
            assert got[2] == []
        while not got[2]:
            async with knocking(door, got[2]) as later:
                later.send(ASK)
                await asyncio.sleep(0.1)


async def test_a_key_that_is_trusted_no_more_is_told_so_at_its_next_frame() -> None:
    own, client = SecretKey.generate(), SecretKey.generate()
    known = AllowList([Trusted(Party.CLIENT, "anna", client.public)])
    asked, got = list[Identity](), list[Frame]()

    def answer(_: Frame, peer: bytes, who: Identity) -> None:
        asked.append(who)
        listener.send(ANSWER, peer)

    listener = DirectListener(
        "tcp://127.0.0.1:*",
        answer,
        lambda _: None,
        max_part_bytes=1 << 16,
        max_queued=16,
        max_connections=8,
        keys=DoorKeys(own, known, frozenset({Party.CLIENT})),
    )
    async with listener:
        keys = LinkKeys(client, own.public)
        link = PeerLink(listener.endpoint, got.append, max_part_bytes=1 << 16, keys=keys)
        async with link:
            link.send(ASK)
            await until(lambda: len(got) == 1)
            known.replace([])
            link.send(ASK)
            await until(lambda: len(got) == 2)
    assert [who.id for who in asked] == [client.public.id]
    assert type(got[1].refusal()) is NotTrusted
    assert (got[1].envelope.session, got[1].envelope.seq) == (S1, 5)


async def test_who_connects_and_says_nothing_is_let_go_of() -> None:
    door, got = Door(most=1), list[Frame]()
    async with door.listener:
        host, port = door.listener.endpoint.removeprefix("tcp://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(10):  # ZeroMQ's own patience is 30 s
            await reader.read()
        writer.close()
        while not got:
            async with knocking(door, got) as client:
                client.send(ASK)
                await asyncio.sleep(0.1)


async def test_an_endpoint_of_another_machine_cannot_be_listened_on() -> None:
    door = Door()
    door.listener.endpoint = "tcp://192.0.2.1:7710"
    with pytest.raises(EndpointUnavailable, match=r"192\.0\.2\.1:7710"):
        async with door.listener:
            pass
