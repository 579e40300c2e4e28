"""Requests over a link that is a function: what is sent, sent again, and given up.

Resend times are real but a few milliseconds; nothing here waits for longer than it must.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from fedsea_mq.errors import (
    Busy,
    FedSeaError,
    MalformedFrame,
    NotTrusted,
    PeerUnreachable,
    RemoteError,
    SessionLost,
    SessionNotYours,
    SessionUnknown,
)
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts, wire_bytes
from fedsea_mq.protocol.messages import Extend, Nothing, Result
from fedsea_mq.transport.requests import Patience, Requests, Traffic

S1, S2 = b"1" * 16, b"2" * 16
BODY = Extend(cached=0, count=1, returned=1)
RESULT = Result(cached=1, returned=1)
PATIENT = Patience(resend_s=30, give_up_s=60)
QUICK = Patience(resend_s=0.005, give_up_s=10)

Answer = Callable[[Frame, int], Frame | None]


def says_result(asked: Frame, _: int) -> Frame:
    said = asked.envelope
    return Frame.build(Kind.RESULT, RESULT, session=said.session, seq=said.seq, payload=[b"out"])


def says_nothing(_: Frame, __: int) -> None:
    return None


@dataclass
class Line:
    """The other end: `answer` says what comes back to the n-th frame sent, if anything."""

    answer: Answer
    patience: Patience = PATIENT
    sent: list[Parts] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.requests = Requests(self.send, self.patience)

    def send(self, parts: Parts) -> None:
        self.sent.append(parts)
        reply = self.answer(Frame.read(parts), len(self.sent))
        if reply is not None:
            self.requests.receive(reply)

    async def ask(self, session: bytes = S1, traffic: Traffic | None = None) -> Frame:
        return await self.requests.ask(
            Kind.EXTEND, BODY, session=session, payload=[b"states"], traffic=traffic
        )

    async def asked(self, session: bytes = S1) -> asyncio.Task[Frame]:
        """A request that is on its way."""
        task, before = asyncio.create_task(self.ask(session)), len(self.sent)
        while len(self.sent) == before:
            await asyncio.sleep(0)
        return task


async def test_a_reply_finds_its_request() -> None:
    line = Line(says_nothing)
    first, second = await line.asked(), await line.asked()
    for parts in reversed(line.sent):
        line.requests.receive(says_result(Frame.read(parts), 0))
    assert (await first).envelope.seq == 1
    assert (await second).envelope.seq == 2


async def test_given_silence_then_the_very_same_bytes_are_sent_again() -> None:
    line = Line(lambda asked, n: says_result(asked, n) if n == 3 else None, QUICK)
    assert (await line.ask()).body(Result) == RESULT
    assert len(line.sent) == 3
    assert line.sent[0] == line.sent[1] == line.sent[2]


async def test_given_busy_then_it_is_asked_again_after_as_long_as_was_said() -> None:
    def busy_twice(asked: Frame, n: int) -> Frame:
        return Frame.error(Busy("full", 0.02), asked.envelope) if n < 3 else says_result(asked, n)

    line = Line(busy_twice)
    started = asyncio.get_running_loop().time()
    await line.ask()
    assert asyncio.get_running_loop().time() - started >= 0.04
    assert len(line.sent) == 3


async def test_given_busy_for_longer_than_it_may_take_then_busy_is_raised_at_once() -> None:
    line = Line(lambda asked, _: Frame.error(Busy("full", 61.0), asked.envelope))
    with pytest.raises(Busy):
        await line.ask()
    assert len(line.sent) == 1


async def test_given_busy_until_there_is_no_time_for_an_answer_then_busy_is_raised() -> None:
    def busy_once(asked: Frame, n: int) -> Frame | None:
        return Frame.error(Busy("full", 0.05), asked.envelope) if n == 1 else None

    line = Line(busy_once, Patience(resend_s=30, give_up_s=0.1))
    with pytest.raises(Busy, match="full"):
        await line.ask()
    assert len(line.sent) == 2


async def test_given_busy_and_then_silence_for_long_then_the_peer_is_unreachable() -> None:
    def busy_once(asked: Frame, n: int) -> Frame | None:
        return Frame.error(Busy("full", 0.01), asked.envelope) if n == 1 else None

    line = Line(busy_once, Patience(resend_s=0.02, give_up_s=0.3))
    with pytest.raises(PeerUnreachable):
        await line.ask()


async def test_given_silence_for_too_long_then_the_peer_is_unreachable() -> None:
    line = Line(says_nothing, Patience(resend_s=0.004, give_up_s=0.2))
    with pytest.raises(PeerUnreachable, match=r"0\.2 s"):
        await line.ask()
    assert len(line.sent) >= 2


async def test_a_refusal_is_raised_as_the_error_it_tells() -> None:
    line = Line(lambda asked, _: Frame.error(SessionLost("gone"), asked.envelope))
    with pytest.raises(SessionLost, match="gone"):
        await line.ask()


async def test_given_a_refusal_that_cannot_be_read_then_the_request_fails_all_the_same() -> None:
    def garbled(asked: Frame, _: int) -> Frame:
        return Frame(Envelope(Kind.ERROR, S1, asked.envelope.seq), b"\xff garbled")

    with pytest.raises(MalformedFrame):
        await Line(garbled).ask()


async def test_duplicates_strangers_and_old_replies_are_ignored() -> None:
    line = Line(says_nothing)
    task = await line.asked()
    asked = Frame.read(line.sent[0])
    wrong_session = Frame(Envelope(Kind.RESULT, S2, asked.envelope.seq), asked.packed_body)
    wrong_number = Frame(Envelope(Kind.RESULT, S1, 99), asked.packed_body)
    for frame in (wrong_session, wrong_number):
        line.requests.receive(frame)
    assert not task.done()
    for _ in range(3):
        line.requests.receive(says_result(asked, 0))
    assert (await task).payload == [b"out"]
    line.requests.receive(says_result(asked, 0))
    assert (await line.asked(S2)).done() is False


async def test_given_a_closed_session_then_all_that_waits_for_it_fails_and_others_wait_on() -> None:
    line = Line(says_nothing)
    mine, mine_too, other = await line.asked(S1), await line.asked(S1), await line.asked(S2)
    line.requests.receive(Frame.closing(SessionLost("the node is gone"), S1))
    for task in (mine, mine_too):
        with pytest.raises(SessionLost):
            await task
    assert not other.done()
    other.cancel()


@pytest.mark.parametrize("packed", [b"\x00\x80", b"\xff"])
async def test_given_a_close_without_a_readable_reason_then_what_waits_fails_too(
    packed: bytes,
) -> None:
    line = Line(says_nothing)
    task = await line.asked()
    line.requests.receive(Frame(Envelope(Kind.CLOSE, S1), packed))
    with pytest.raises(RemoteError):
        await task


async def test_a_cancelled_request_is_forgotten() -> None:
    line = Line(says_nothing)
    task = await line.asked()
    task.cancel()
    await asyncio.wait([task])
    line.requests.receive(says_result(Frame.read(line.sent[0]), 0))
    assert task.cancelled()
    assert len(line.sent) == 1


async def test_traffic_counts_both_ways_with_framing_and_what_was_sent_again() -> None:
    traffic = Traffic()
    line = Line(lambda asked, n: says_result(asked, n) if n == 2 else None, QUICK)
    reply = await line.ask(traffic=traffic)
    assert traffic.bytes_up == 2 * wire_bytes(line.sent[0])
    assert traffic.bytes_down == wire_bytes(reply.parts())
    assert traffic.round_trips == 1


async def test_an_error_of_the_link_itself_is_not_hidden() -> None:
    def broken(_: Frame, __: int) -> None:
        raise FedSeaError("the link is not open")

    with pytest.raises(FedSeaError, match="not open"):
        await Line(broken).ask()


async def test_a_request_with_the_broker_itself_has_no_session() -> None:
    line = Line(says_result)
    reply = await line.requests.ask(Kind.STATUS, Nothing())
    assert reply.envelope.session == b""


@dataclass
class Door:
    """A way past the broker: what was sent there, and how often it was given up."""

    sent: list[Parts] = field(default_factory=list)
    failures: int = 0

    def send(self, parts: Parts) -> None:
        self.sent.append(parts)

    def failed(self) -> None:
        self.failures += 1


async def asked_directly(line: Line, door: Door, traffic: Traffic) -> asyncio.Task[Frame]:
    """A request that is on its way past the broker."""
    asking = line.requests.ask(
        Kind.EXTEND, BODY, session=S1, payload=[b"states"], traffic=traffic, direct=door
    )
    task = asyncio.create_task(asking)
    while not door.sent:
        await asyncio.sleep(0)
    return task


async def test_a_request_past_the_broker_is_answered_from_there() -> None:
    line, door, traffic = Line(says_nothing), Door(), Traffic()
    task = await asked_directly(line, door, traffic)
    line.requests.receive_directly(says_result(Frame.read(door.sent[0]), 0))
    assert (await task).payload == [b"out"]
    assert (line.sent, door.failures) == ([], 0)
    assert (traffic.round_trips, traffic.direct_trips) == (1, 1)


async def test_given_silence_past_the_broker_then_the_same_bytes_go_through_it() -> None:
    line, door, traffic = Line(says_result, QUICK), Door(), Traffic()
    task = await asked_directly(line, door, traffic)
    await task
    assert line.sent == door.sent
    assert len(line.sent) == 1
    assert door.failures == 1
    assert (traffic.round_trips, traffic.direct_trips) == (1, 0)


@pytest.mark.parametrize("error", [SessionUnknown, SessionNotYours, NotTrusted])
async def test_given_a_stranger_past_the_broker_then_the_broker_is_asked_at_once(
    error: type[RemoteError],
) -> None:
    line, door = Line(says_result), Door()
    task = await asked_directly(line, door, Traffic())
    stranger = Frame.error(error("not here"), Frame.read(door.sent[0]).envelope)
    line.requests.receive_directly(stranger)
    assert (await task).body(Result) == RESULT
    assert line.sent == door.sent
    assert door.failures == 1


async def test_given_a_link_that_is_refused_then_what_waits_for_the_broker_fails_at_once() -> None:
    line, door = Line(says_nothing), Door()
    past = await asked_directly(line, door, Traffic())
    waits = asyncio.create_task(line.requests.ask(Kind.RENEW, Nothing(), session=S2))
    while not line.sent:
        await asyncio.sleep(0)
    line.requests.refuse(NotTrusted("the broker does not trust this key"))
    with pytest.raises(NotTrusted):
        await waits
    assert not past.done()
    line.requests.receive_directly(says_result(Frame.read(door.sent[0]), 0))
    await past


async def test_what_is_no_answer_of_a_node_is_ignored_past_the_broker() -> None:
    line, door = Line(says_nothing), Door()
    task = await asked_directly(line, door, Traffic())
    envelope = Frame.read(door.sent[0]).envelope
    line.requests.receive_directly(Frame.closing(SessionLost("gone"), S1))
    for kind in (Kind.ACCEPT, Kind.BUSY, Kind.CLOSE, Kind.STATUS_REPORT):
        line.requests.receive_directly(Frame(Envelope(kind, S1, envelope.seq), b"\x00\x80"))
    assert not task.done()
    line.requests.receive_directly(says_result(Frame.read(door.sent[0]), 0))
    await task


async def test_the_broker_closes_sessions_whose_requests_go_past_it() -> None:
    line, door = Line(says_nothing), Door()
    task = await asked_directly(line, door, Traffic())
    line.requests.receive(Frame.closing(SessionLost("the node is gone"), S1))
    with pytest.raises(SessionLost):
        await task


async def test_who_does_not_answer_is_named() -> None:
    with pytest.raises(PeerUnreachable, match="no answer to EXTEND from the broker within"):
        await Line(says_nothing, QUICK).ask()
