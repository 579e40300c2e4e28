"""Garbage at live sockets: the system goes on serving, and each frame gets a typed answer."""

from __future__ import annotations

import asyncio
import random
import secrets
from pathlib import Path
from typing import Any

import pytest
import zmq

from fedsea_mq.cli.chaos.attacks.fuzzing import mutated
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.protocol.bundle import bundled, is_bundle, unbundled
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Extend, Load, Nothing, Open, Register
from fedsea_mq.protocol.payload import WireDtype
from tests.integration.systems import System, running, until

FRAMES = 20_000
ONE = SamplingSettings(max_new_tokens=4, ignore_eos=True)


def seeds(system: System) -> list[list[bytes]]:
    """Good frames to mutate, one of each kind a client or node may send."""
    session = secrets.token_bytes(16)
    fingerprint = system.client.model.fingerprint
    load = Load(kv_positions_free=1, kv_positions_total=1, sessions=0, sessions_free=1)
    bodies: list[tuple[Kind, Any, list[bytes]]] = [
        (Kind.OPEN, Open(fingerprint, 64, WireDtype.FP32), []),
        (Kind.EXTEND, Extend(0, 2, 1), [bytes(2 * 64 * 4)]),
        (Kind.EXTEND, Extend(0, 1, 1, rewinds=True), [bytes(64 * 4)]),
        (Kind.RENEW, Nothing(), []),
        (Kind.STATUS, Nothing(), []),
        (Kind.HEARTBEAT, load, []),
        (Kind.REGISTER, Register("x", fingerprint, 1, 1, 64, load, [session]), []),
    ]
    alone = [
        Frame.build(kind, body, session=session, seq=7, payload=payload).parts()
        for kind, body, payload in bodies
    ]
    return [*alone, bundled(alone[1:5])]


def mutate(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    """Now and then one untouched, in the wrong place or time."""
    return list(parts) if rng.random() < 0.25 else mutated(rng, parts)


async def test_mutated_frames_at_the_brokers_ports_harm_nobody(tiny_llama: Path) -> None:
    rng = random.Random(4)
    async with running(tiny_llama) as system:
        wanted = await system.client.generate([1, 2, 3], ONE).complete()
        for endpoint in (system.broker.clients, system.broker.nodes):
            await _throw(rng, endpoint, seeds(system))
        again = await system.client.generate([1, 2, 3], ONE).complete()
    assert again.tokens == wanted.tokens


async def test_mutated_frames_of_an_open_session_harm_nobody(tiny_llama: Path) -> None:
    """The broker relays by the envelope, so these reach the trunk."""
    rng = random.Random(5)
    async with running(tiny_llama) as system:
        wanted = await system.client.generate([1, 2, 3], ONE).complete()
        opening = seeds(system)[0]
        session = Envelope.decode(opening[0]).session
        frames = [
            parts
            for parts in seeds(system)
            if Envelope.decode(parts[0]).kind not in (Kind.REGISTER, Kind.BUNDLE)
        ]
        relayed = [
            [Envelope(Envelope.decode(p[0]).kind, session, 9).encode(), *p[1:]] for p in frames
        ]
        await _throw(rng, system.broker.clients, relayed, first=opening, keep_envelope=True)
        again = await system.client.generate([1, 2, 3], ONE).complete()
        assert again.tokens == wanted.tokens
        assert system.trunks[0].sessions <= 2


async def test_mutated_frames_at_a_nodes_own_door_harm_nobody(tiny_llama: Path) -> None:
    rng = random.Random(6)
    direct = ["trunk.direct=tcp://127.0.0.1:*", "client.direct=true", "broker.max_part_mb=1"]
    async with running(tiny_llama, *direct) as system:
        wanted = await system.client.generate([1, 2, 3], ONE).complete()
        await until(lambda: system.trunks[0].sessions == 0)
        door = str(system.trunks[0].direct)
        await _throw(rng, door, seeds(system), frames=4000)
        assert system.trunks[0].sessions == 0  # none was opened past the broker
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.set(zmq.LINGER, 0)
            socket.connect(door)
            socket.send_multipart([Envelope(Kind.EXTEND).encode(), bytes(2 << 20)])
            again = await system.client.generate([1, 2, 3], ONE).complete()
            assert not socket.poll(0)
    assert again.tokens == wanted.tokens
    assert again.stats.direct_share == 1


async def test_an_open_session_survives_mutated_frames_of_its_own_past_the_broker(
    tiny_llama: Path,
) -> None:
    """Whoever knows a session's id can spoil that session, and no other."""
    rng = random.Random(7)
    async with running(tiny_llama, "trunk.direct=tcp://127.0.0.1:*") as system:
        wanted = await system.client.generate([1, 2, 3], ONE).complete()
        async with system.client.session(64) as session:
            await session.advance([1, 2], lambda _: None)
            (known,) = system.trunks[0]._running.sessions.ids
            mine = [
                [Envelope(Envelope.decode(p[0]).kind, known, 9).encode(), *p[1:]]
                for p in seeds(system)[:5]
            ]
            door = str(system.trunks[0].direct)
            await _throw(rng, door, mine, keep_envelope=True, frames=4000)
            assert system.trunks[0].sessions == 1
            again = await system.client.generate([1, 2, 3], ONE).complete()
    assert again.tokens == wanted.tokens


async def _throw(
    rng: random.Random,
    endpoint: str,
    good: list[list[bytes]],
    *,
    first: list[bytes] | None = None,
    keep_envelope: bool = False,
    frames: int = FRAMES,
) -> None:
    """Send mutated frames and read what comes back: always a frame of the protocol."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(endpoint)
        if first is not None:
            socket.send_multipart(first)
            (accept,) = await _answers(socket, at_least=1)
            assert accept.envelope.kind is Kind.ACCEPT
        answers = 0
        for number in range(frames):
            parts = mutate(rng, rng.choice(good))
            if keep_envelope:
                parts[:1] = [rng.choice(good)[0]]
            if parts:
                await _put(socket, parts)
            if number % 16 == 0:
                answers += len(await _answers(socket))
        answers += len(await _answers(socket, at_least=frames // 4 - answers))
    assert answers >= frames // 4


async def _put(socket: zmq.Socket[bytes], parts: list[bytes]) -> None:
    """Send; where there is no room, wait without holding the loop, on which the system runs."""
    async with asyncio.timeout(10):
        while True:
            try:
                return socket.send_multipart(parts, zmq.NOBLOCK)
            except zmq.Again:
                await asyncio.sleep(0.002)


async def _answers(socket: zmq.Socket[bytes], at_least: int = 0) -> list[Frame]:
    """Every frame that has come, once there are `at_least` so many."""
    frames: list[Frame] = []
    async with asyncio.timeout(10):
        while True:
            await asyncio.sleep(0.002 if len(frames) < at_least else 0)
            while socket.poll(0):
                parts = socket.recv_multipart()
                messages = unbundled(parts) if is_bundle(parts) else [parts]
                frames += map(Frame.read, messages)
            if len(frames) >= at_least:
                return frames


async def test_an_oversize_part_is_cut_off_and_others_go_on(tiny_llama: Path) -> None:
    async with running(tiny_llama, "broker.max_part_mb=1") as system:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.set(zmq.LINGER, 0)
            socket.connect(system.broker.clients)
            socket.send_multipart([Envelope(Kind.STATUS).encode(), bytes(2 << 20)])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await _answers(socket, at_least=1)
        answer = await system.client.generate([1], ONE).complete()
        assert len(answer.tokens) == 4
        await until(lambda: system.trunks[0].sessions == 0)
