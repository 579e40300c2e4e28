"""The two ends of a relay of frames: raw sockets that do as little as they can.

They say the protocol's words, so that the broker relays between them; ZeroMQ's proxy does not read
what it relays, and is given the same messages.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from typing import Any, Final

import zmq

from fedsea_mq.protocol.bundle import is_bundle, unbundled
from fedsea_mq.protocol.envelope import SESSION_BYTES, Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import (
    Accept,
    Extend,
    Load,
    Open,
    Register,
    Result,
    encode_body,
)
from fedsea_mq.protocol.payload import WireDtype

_FINGERPRINT: Final = "0" * 64
_PAYLOAD: Final = bytes(8192)
_WINDOW: Final = 64
_RESULT: Final = encode_body(Result(1, 1))
_LOAD: Final = Load(
    kv_positions_free=1 << 20, kv_positions_total=1 << 20, sessions=1 << 10, sessions_free=1 << 14
)


def proxy(announce: Any) -> None:
    """ZeroMQ's own relay, until its process is ended."""
    with zmq.Context() as context:
        front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (front, back)]
        announce(*(f"tcp://127.0.0.1:{port}" for port in ports))
        zmq.proxy(front, back)


def echo(endpoint: str, announce: Any) -> None:
    """The far end: a node that answers each frame with one of the same size; until orphaned."""
    parent = os.getppid()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(endpoint)
        socket.send_multipart(Frame.build(Kind.REGISTER, _offer()).parts())
        announce()
        beat_at = time.monotonic()
        while os.getppid() == parent:
            if time.monotonic() > beat_at:
                socket.send_multipart(Frame.build(Kind.HEARTBEAT, _LOAD).parts())
                beat_at = time.monotonic() + 0.5
            if socket.poll(200):
                for message in _messages(socket.recv_multipart()):
                    _answer(socket, message)


def _offer() -> Register:
    return Register("echo", _FINGERPRINT, 1, 1, 4096, _LOAD, [])


def _answer(socket: zmq.Socket[bytes], message: Parts) -> None:
    # Through the proxy, the asker's address comes first and goes back first.
    address, parts = (message[:1], message[1:]) if message[0][:1] == b"\0" else ([], message)
    envelope = Envelope.decode(parts[0])
    if envelope.kind is Kind.OPEN:
        kind, body = Kind.ACCEPT, encode_body(Accept("echo", 512, 60_000))
    elif envelope.kind is Kind.EXTEND:
        kind, body = Kind.RESULT, _RESULT
    else:
        return
    frame = Frame(Envelope(kind, envelope.session, envelope.seq), body, parts[2:])
    socket.send_multipart([*address, *frame.parts()])


def frames_per_s(endpoint: str, seconds: float) -> float:
    """The near end: keeps 64 frames of 8 KiB on their way, and counts those that come back."""
    session = secrets.token_bytes(SESSION_BYTES)
    opening = Open(_FINGERPRINT, 1 << 10, WireDtype.FP16)
    ask = Frame.build(Kind.EXTEND, Extend(0, 1, 1), session=session, payload=[_PAYLOAD]).parts()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(endpoint)
        socket.send_multipart(Frame.build(Kind.OPEN, opening, session=session).parts())
        for frame in _received(socket):
            if frame.envelope.kind is Kind.ACCEPT:
                break
        for _ in range(_WINDOW):
            socket.send_multipart(ask)
        count, begun = 0, 0.0
        for frame in _received(socket):
            if frame.envelope.kind is not Kind.RESULT:
                continue
            count += 1
            now = time.perf_counter()
            if count == 10 * _WINDOW:
                begun = now  # warm
            if begun and now - begun > seconds:
                return (count - 10 * _WINDOW) / (now - begun)
            socket.send_multipart(ask)
    raise RuntimeError("the relay fell silent")


def _received(socket: zmq.Socket[bytes]) -> Iterator[Frame]:
    while socket.poll(5000):
        for message in _messages(socket.recv_multipart()):
            yield Frame.read(message)


def _messages(parts: Parts) -> list[Parts]:
    return unbundled(parts) if is_bundle(parts) else [parts]
