"""Requests of sealed sessions: what is not as the node sealed it is waited out, never believed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from fedsea_mq.errors import (
    MalformedFrame,
    PeerUnreachable,
    PositionConflict,
    SealBroken,
    SessionLost,
    SessionUnknown,
)
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts, wire_bytes
from fedsea_mq.protocol.messages import Extend, Nothing, Result
from fedsea_mq.transport.requests import Patience, Requests, Traffic
from tests.unit.security.sealed import OPEN, SealedClient, SealedTrunk
from tests.unit.serving.trunk import ANNA, states

QUICK = Patience(resend_s=0.005, give_up_s=10)
Change = Callable[[int, Parts], Iterable[Parts]]


def faithful(_: int, parts: Parts) -> Iterable[Parts]:
    return [parts]


def broken(parts: Parts) -> Parts:
    return [parts[0], parts[1][:-1] + bytes([parts[1][-1] ^ 1]), *parts[2:]]


@dataclass
class Line:
    """A sealing trunk at the other end, and one on the way that changes requests and answers."""

    up: Change = faithful
    down: Change = faithful
    patience: Patience = QUICK
    sent: list[Parts] = field(default_factory=list)
    answers: int = 0

    def __post_init__(self) -> None:
        self.trunk = SealedTrunk()
        self.seals = SealedClient.of(self.trunk.key).seals
        self.requests = Requests(self.send, self.patience, seals=self.seals)

    def send(self, parts: Parts) -> None:
        self.sent.append(parts)
        for changed in self.up(len(self.sent), parts):
            for reply in self.trunk.receive(changed):
                self.answers += 1
                for said in self.down(self.answers, reply):
                    self.requests.receive(Frame.read(said))

    async def open(self) -> None:
        await self.requests.ask(Kind.OPEN, OPEN, session=ANNA)
        self.sent.clear()
        self.answers = 0

    async def extend(self, cached: int = 0, traffic: Traffic | None = None) -> Frame:
        return await self.requests.ask(
            Kind.EXTEND,
            Extend(cached=cached, count=1, returned=1),
            session=ANNA,
            payload=states(1),
            traffic=traffic,
        )


async def test_an_answer_comes_opened_and_its_bytes_count_as_they_were_on_the_wire() -> None:
    line, traffic, answers = Line(), Traffic(), []
    await line.open()
    line.down = lambda _, parts: [answers.append(parts) or parts]
    answer = await line.extend(traffic=traffic)
    assert answer.body(Result) == Result(1, 1)
    assert list(answer.payload) == states(1)
    assert traffic.bytes_up == wire_bytes(line.sent[0])
    assert traffic.bytes_down == wire_bytes(answers[0])


async def test_a_request_that_arrives_changed_is_sent_again_as_the_same_bytes() -> None:
    line = Line()
    await line.open()
    line.up = lambda number, parts: [broken(parts) if number < 3 else parts]
    assert (await line.extend()).body(Result) == Result(1, 1)
    assert len(line.sent) == 3
    assert all(parts == line.sent[0] for parts in line.sent)
    assert len(line.trunk.computed) == 1


async def test_an_answer_that_arrives_changed_is_asked_for_again() -> None:
    line = Line()
    await line.open()
    line.down = lambda number, parts: [broken(parts) if number < 3 else parts]
    assert (await line.extend()).body(Result) == Result(1, 1)
    assert len(line.trunk.computed) == 1


async def test_an_opening_whose_answer_arrives_changed_is_asked_for_again() -> None:
    line = Line(down=lambda number, parts: [broken(parts) if number == 1 else parts])
    await line.open()
    assert (await line.extend()).body(Result) == Result(1, 1)


async def test_what_never_arrives_as_it_was_sealed_fails_by_that_name() -> None:
    line = Line(patience=Patience(resend_s=0.005, give_up_s=0.03))
    await line.open()
    line.down = lambda _, parts: [broken(parts)]
    with pytest.raises(SealBroken):
        await line.extend()
    line.down = lambda _, __: []
    with pytest.raises(PeerUnreachable):
        await line.extend()


async def test_a_forged_refusal_is_not_believed_but_that_the_session_is_gone() -> None:
    line = Line()
    await line.open()

    def forged(number: int, parts: Parts) -> Iterable[Parts]:
        asked = Frame.read(parts).envelope
        lies = [PositionConflict("x"), MalformedFrame("x"), SessionUnknown("x")]
        return [Frame.error(lies[number - 1], asked).parts()]

    line.down = forged
    with pytest.raises(SessionUnknown):
        await line.extend()
    assert len(line.sent) == 3


async def test_a_session_that_is_closed_in_clear_fails_and_a_result_as_a_close_frame_does_not() -> (
    None
):
    line = Line()
    await line.open()

    def as_close(number: int, parts: Parts) -> Iterable[Parts]:
        if number == 1:
            envelope = Frame.closing(SessionLost("x"), ANNA).parts()[0]
            return [[envelope, *parts[1:]], parts]
        return [Frame.closing(SessionLost("gone"), ANNA).parts()]

    line.down = as_close
    assert (await line.extend()).body(Result) == Result(1, 1)
    with pytest.raises(SessionLost):
        await line.extend(1)
    with pytest.raises(SessionUnknown):
        await line.extend(1)
    assert len(line.seals) == 0


async def test_a_closed_session_is_told_in_clear_and_forgotten() -> None:
    line = Line()
    await line.open()
    line.requests.close(ANNA)
    assert line.sent == [Frame.build(Kind.CLOSE, Nothing(), session=ANNA, seq=2).parts()]
    assert len(line.seals) == len(line.trunk.seals) == len(line.trunk.sessions) == 0


@dataclass
class Door:
    """A node's own endpoint, at which somebody says what the test has them say."""

    line: Line
    says: Change
    failures: int = 0

    def send(self, parts: Parts) -> None:
        for said in self.says(1, parts):
            self.line.requests.receive_directly(Frame.read(said))

    def failed(self) -> None:
        self.failures += 1


@pytest.mark.parametrize(
    "error", [SessionUnknown("x"), PositionConflict("x"), SealBroken("x"), MalformedFrame("x")]
)
async def test_what_a_stranger_says_at_a_nodes_endpoint_sends_the_request_through_the_broker(
    error: Exception,
) -> None:
    line = Line(patience=Patience(resend_s=30, give_up_s=60))
    await line.open()
    assert isinstance(error, SessionUnknown | PositionConflict | SealBroken | MalformedFrame)

    def stranger(_: int, parts: Parts) -> Iterable[Parts]:
        asked = Frame.read(parts).envelope
        return [Frame.error(error, asked).parts()]

    door = Door(line, stranger)
    body = Extend(cached=0, count=1, returned=1)
    async with asyncio.timeout(5):
        answer = await line.requests.ask(
            Kind.EXTEND, body, session=ANNA, payload=states(1), direct=door
        )
    assert answer.body(Result) == Result(1, 1)
    assert (door.failures, len(line.sent)) == (1, 1)


async def test_a_forged_result_at_a_nodes_endpoint_sends_the_request_through_the_broker() -> None:
    line = Line(patience=Patience(resend_s=30, give_up_s=60))
    await line.open()

    def forger(_: int, parts: Parts) -> Iterable[Parts]:
        asked = Frame.read(parts).envelope
        forged = Frame.build(Kind.RESULT, Result(1, 1), session=ANNA, seq=asked.seq)
        return [[*forged.parts(), *states(1, 9)]]

    async with asyncio.timeout(5):
        answer = await line.requests.ask(
            Kind.EXTEND,
            Extend(cached=0, count=1, returned=1),
            session=ANNA,
            payload=states(1),
            direct=Door(line, forger),
        )
    assert list(answer.payload) == states(1)
