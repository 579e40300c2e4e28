"""The attacks. Each returns how it was refused or bounded, or raises `Succeeded`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from random import Random
from typing import Any, Final

import msgpack

from fedsea_mq.cli.chaos.attacks.besieged import HONEST, MALLORY, REVOKED, STRANGER, Besieged
from fedsea_mq.cli.chaos.attacks.fuzzing import mutated
from fedsea_mq.cli.chaos.attacks.intruder import DTYPE, Intruder, extend, with_body
from fedsea_mq.errors import FedSeaError, NotTrusted, PeerUnreachable
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Body, Extend, Nothing, Open
from fedsea_mq.security.identity import Party

Attack = Callable[[Besieged, float], Awaitable[str]]

_IDLE: Final = 1000
_AT_ONCE: Final = 64
_NOTICED_WITHIN_S: Final = 5.0
_POSITIONS: Final = 64
# ZeroMQ gives a handshake three seconds.
_LET_GO_S: Final = 5.0
_DEPTH: Final = 4000
# At least, so that ten seconds of it are a million frames, however long they take.
_GARBAGE_A_SECOND: Final = 100_000


class Succeeded(Exception):
    """The attacker got what it was not to get."""


async def _refused(asked: Awaitable[Any]) -> str:
    try:
        await asked
    except PeerUnreachable:
        return "no answer"
    except FedSeaError as error:
        return type(error).__name__
    raise Succeeded("it was answered")


async def wrong_key(siege: Besieged, _: float) -> str:
    """Connect with a key that nobody trusts."""
    async with Intruder(siege.settings(STRANGER)) as stranger:
        return "refused: " + await _refused(stranger.ask(Kind.STATUS, Nothing()))


async def revoked_key(siege: Besieged, _: float) -> str:
    """Go on with a key that was trusted until now, on the connection that it has."""
    async with Intruder(siege.settings(REVOKED)) as one:
        await _until(one, trusted=True)
        siege.trust.remove(Party.CLIENT, REVOKED)
        began = time.monotonic()
        try:
            await _until(one, trusted=False)
        finally:
            siege.allow(Party.CLIENT, REVOKED)
    return f"refused after {time.monotonic() - began:.1f} s: NotTrusted"


async def _until(one: Intruder, *, trusted: bool) -> None:
    """Wait until the broker has noticed what its folder says. Raises `Succeeded` if it does not."""
    ends_at = time.monotonic() + _NOTICED_WITHIN_S
    while time.monotonic() < ends_at:
        try:
            await one.ask(Kind.STATUS, Nothing())
            answered = True
        except NotTrusted:
            answered = False
        if answered == trusted:
            return
        await asyncio.sleep(0.05)
    raise Succeeded("the folder of trusted keys made no difference")


async def stolen_session(siege: Besieged, _: float) -> str:
    """Use another client's session id, which was seen somewhere."""
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(Intruder(siege.settings(HONEST)))
        thief = await stack.enter_async_context(Intruder(siege.settings(MALLORY)))
        session = await owner.open(siege.model.fingerprint, _POSITIONS)
        frame = extend(session, siege.model.hidden)
        asks: list[tuple[Kind, Body, Sequence[bytes]]] = [
            (Kind.RENEW, Nothing(), ()),
            (Kind.EXTEND, frame.body(Extend), frame.payload),
            (Kind.OPEN, Open(siege.model.fingerprint, _POSITIONS, DTYPE), ()),
        ]
        said = {
            await _refused(thief.ask(kind, body, session, payload)) for kind, body, payload in asks
        }
        thief.throw(Frame.build(Kind.CLOSE, Nothing(), session=session).parts())
        await owner.ask(Kind.RENEW, Nothing(), session)  # it is still there
        owner.throw(Frame.build(Kind.CLOSE, Nothing(), session=session).parts())
    return "refused: " + ", ".join(sorted(said))


async def replayed_frame(siege: Besieged, _: float) -> str:
    """Send a frame again and again, before and after the session went on."""
    async with Intruder(siege.settings(MALLORY)) as one:
        session = await one.open(siege.model.fingerprint, _POSITIONS)
        first = extend(session, siege.model.hidden)
        before = await _answers_to(one, [first.parts()] * 4)
        await _answers_to(one, [extend(session, siege.model.hidden, 1, seq=2 << 20).parts()])
        after = await _answers_to(one, [first.parts()] * 4)
        await one.ask(Kind.RENEW, Nothing(), session)
        one.throw(Frame.build(Kind.CLOSE, Nothing(), session=session).parts())
    results = [frame for frame in before if frame.envelope.kind is Kind.RESULT]
    if any(frame.payload != results[0].payload for frame in results):
        raise Succeeded("copies of one frame were answered differently")
    late = {type(frame.refusal()).__name__ for frame in after}
    return f"copies answered from memory; once it is past, {' or '.join(sorted(late)) or 'nothing'}"


async def _answers_to(
    one: Intruder, messages: Sequence[Parts], within_s: float = 1.0
) -> list[Frame]:
    """What comes back, until nothing does for a while."""
    one.answers.clear()
    for parts in messages:
        one.throw(parts)
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                if len(one.answers) >= len(messages):
                    break
                await asyncio.sleep(0.02)
    return list(one.answers)


async def oversize(siege: Besieged, _: float) -> str:
    """A part larger than the broker takes."""
    settings = siege.settings(MALLORY)
    async with Intruder(settings) as one:
        status = Frame.build(Kind.STATUS, Nothing(), seq=1 << 20).parts()
        large = bytes((settings.broker.max_part_mb << 20) + 1)
        if await _answers_to(one, [[*status, large]]):
            raise Succeeded("it was answered")
    return "cut off without an answer"


async def decompression_bomb(siege: Besieged, _: float) -> str:
    """A body that declares 4 GB."""
    return await _bad_body(siege, b"\x01" + (0xFFFF_FFFF).to_bytes(4, "little") + bytes(64))


async def depth_bomb(siege: Besieged, _: float) -> str:
    """A body of arrays in arrays, four thousand deep."""
    return await _bad_body(siege, b"\x00" + b"\x91" * _DEPTH + msgpack.packb(None))


async def _bad_body(siege: Besieged, body: bytes) -> str:
    """At the broker, which reads OPEN, and at the trunk, which reads EXTEND."""
    async with Intruder(siege.settings(MALLORY)) as one:
        session = await one.open(siege.model.fingerprint, _POSITIONS)
        opening = Frame.build(Kind.OPEN, Nothing(), session=bytes(range(16)))
        said = await _answers_to(
            one,
            [with_body(opening, body), with_body(extend(session, siege.model.hidden), body)],
        )
        await one.ask(Kind.RENEW, Nothing(), session)
        one.throw(Frame.build(Kind.CLOSE, Nothing(), session=session).parts())
    if len(said) != 2 or any(frame.refusal() is None for frame in said):
        raise Succeeded(f"{len(said)} answers, not two refusals")
    return "refused: " + ", ".join(sorted({type(frame.refusal()).__name__ for frame in said}))


async def handshake_flood(siege: Besieged, seconds: float) -> str:
    """Connect as fast as can be, begin a handshake, and leave."""
    host, port = _address(siege)
    made = 0
    ends_at = time.monotonic() + seconds

    async def knock() -> None:
        nonlocal made
        while time.monotonic() < ends_at:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(host, port)
                writer.write(b"\xff\0\0\0\0\0\0\0\1\x7f\x03\x01CURVE".ljust(64, b"\0"))
                made += 1
                await asyncio.sleep(0.01)
                writer.transport.abort()

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(knock())
    return f"bounded: {made} handshakes begun in {seconds:g} s, none let in"


async def idle_connections(siege: Besieged, seconds: float) -> str:
    """A thousand connections that say nothing."""
    host, port = _address(siege)
    within_s = max(seconds, _LET_GO_S)
    ends = [await asyncio.open_connection(host, port) for _ in range(_IDLE)]
    try:
        async with asyncio.timeout(within_s):
            # Each until it is ended, in whatever way.
            await asyncio.gather(*(reader.read() for reader, _ in ends), return_exceptions=True)
    except TimeoutError:
        left = sum(not reader.at_eof() for reader, _ in ends)
        raise Succeeded(f"{left} of {_IDLE} are still there") from None
    finally:
        for _, writer in ends:
            writer.transport.abort()
    return f"bounded: all {_IDLE} let go of within {within_s:g} s"


async def garbage(siege: Besieged, seconds: float) -> str:
    """Mutated frames from a trusted key, of an open session and of none."""
    rng = Random()
    sent = 0
    async with Intruder(siege.settings(MALLORY)) as one:
        session = await one.open(siege.model.fingerprint, _POSITIONS)
        good = [
            extend(session, siege.model.hidden).parts(),
            Frame.build(Kind.RENEW, Nothing(), session=session, seq=7).parts(),
            Frame.build(
                Kind.OPEN, Open(siege.model.fingerprint, 4, DTYPE), session=bytes(16), seq=7
            ).parts(),
            Frame.build(Kind.STATUS, Nothing(), seq=7).parts(),
        ]
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at or sent < seconds * _GARBAGE_A_SECOND:
            for _ in range(16):
                one.throw(mutated(rng, rng.choice(good)))
                sent += 1
            await asyncio.sleep(0)
            if sent % 512 == 0:  # wait until it was read
                await one.ask(Kind.STATUS, Nothing())
                one.answers.clear()
        one.throw(Frame.build(Kind.CLOSE, Nothing(), session=session).parts())
    return f"refused: {sent} mutated frames"


def _address(siege: Besieged) -> tuple[str, int]:
    host, _, port = siege.fleet.settings.broker.clients.removeprefix("tcp://").rpartition(":")
    return host, int(port)


ATTACKS: Final[Mapping[str, Attack]] = {
    "wrong key": wrong_key,
    "revoked key": revoked_key,
    "stolen session id": stolen_session,
    "replayed frame": replayed_frame,
    "oversize part": oversize,
    "decompression bomb": decompression_bomb,
    "msgpack depth bomb": depth_bomb,
    "handshake flood": handshake_flood,
    "1,000 idle connections": idle_connections,
    "mutated frames": garbage,
}
