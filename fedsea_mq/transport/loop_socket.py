"""A ZeroMQ socket on the running event loop: drained in bursts, written without blocking.

ZeroMQ's file descriptor is edge-triggered: it says "look", not "there is a message". So the socket
is drained until empty at each look, and looked at again after each send, because a send may consume
the edge. Draining was measured at twice the throughput of one awaited receive a message.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Self

import zmq

from fedsea_mq.errors import EndpointUnavailable, NotRunning, PeerUnreachable, SendQueueFull
from fedsea_mq.protocol.frames import MAX_PARTS
from fedsea_mq.security.keyring import DoorKeys, LinkKeys
from fedsea_mq.transport.curve import set_keys

Part = Any  # bytes, or zmq.Frame where nothing is copied
Context = zmq.Context[zmq.Socket[bytes]]
OnMessage = Callable[[list[Part]], None]
Split = Callable[[list[Part]], Sequence[list[Part]]]

# Messages taken off the wire or handled before other tasks of the loop, among them what sends the
# answers, get their turn.
_BURST: Final = 24
# A ROUTER puts the peer's identity before the frame; one part more is read to see that it is there.
_MAX_PARTS: Final = MAX_PARTS + 2
_ZMTP_HEARTBEAT_MS: Final = 2000
_ZMTP_TIMEOUT_MS: Final = 6000
# A peer that connects and says nothing keeps its connection this long.
_HANDSHAKE_MS: Final = 3000
_LINGER_MS: Final = 250


@contextmanager
def context_for(sockets: int) -> Iterator[Context]:
    """One context, with its one I/O thread, for so many sockets; closed with what they hold."""
    context: Context = zmq.Context()
    # ZeroMQ's own limit is 1,023; it keeps some sockets for itself, and knows no more than 65,535.
    context.set(zmq.MAX_SOCKETS, min(sockets + 16, 65_535))
    try:
        yield context
    finally:
        context.destroy(linger=0)


class LoopSocket:
    """One socket; `on_message` is called with the parts of each message. Use with `async with`.

    Args:
        kind: `zmq.DEALER`, `zmq.ROUTER`, or `zmq.PAIR` inside the process.
        max_part_bytes: a peer that sends a larger part is disconnected by ZeroMQ.
        max_queued: messages queued to one peer; beyond it `send` raises.
        split: the messages that one off the wire stands for; each is handled on its own.
        copy: whether parts arrive as bytes; otherwise as `zmq.Frame`, for relaying untouched.
        context: one to share, with its I/O thread, among many sockets; else one of its own.
        keys: what it is encrypted and known by; nothing is, without them.
        max_parts: parts of a message beyond these are let go of.
    """

    def __init__(
        self,
        kind: int,
        on_message: OnMessage,
        *,
        max_part_bytes: int,
        max_queued: int,
        copy: bool,
        split: Split = lambda parts: [parts],
        context: Context | None = None,
        keys: DoorKeys | LinkKeys | None = None,
        max_parts: int = _MAX_PARTS,
    ) -> None:
        self._kind = kind
        self._on_message = on_message
        self._max_part_bytes = max_part_bytes
        self._max_queued = max_queued
        self._copy = copy
        self._split = split
        self._unread: deque[list[Part]] = deque()
        self._keys = keys
        self._max_parts = max_parts
        self._shared_context = context
        self._context: Context | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._looking = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._context = self._shared_context or zmq.Context()
        socket = self._context.socket(self._kind)
        socket.set(zmq.LINGER, _LINGER_MS)
        socket.set(zmq.MAXMSGSIZE, self._max_part_bytes)
        socket.set(zmq.SNDHWM, self._max_queued)
        socket.set(zmq.RCVHWM, self._max_queued)
        socket.set(zmq.HEARTBEAT_IVL, _ZMTP_HEARTBEAT_MS)
        socket.set(zmq.HEARTBEAT_TIMEOUT, _ZMTP_TIMEOUT_MS)
        socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.set(zmq.RECONNECT_IVL, 100)
        socket.set(zmq.RECONNECT_IVL_MAX, 2000)
        if self._kind == zmq.ROUTER:
            # Without it a message to a peer that is gone or full is dropped without a word.
            socket.set(zmq.ROUTER_MANDATORY, 1)
        if self._keys is not None:
            set_keys(socket, self._keys)
        self._socket = socket
        self._loop.add_reader(_descriptor(socket), self._look)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._socket is not None
        assert self._context is not None
        socket, self._socket = self._socket, None
        self._loop.remove_reader(_descriptor(socket))
        self._unread.clear()
        socket.close()
        if self._shared_context is None:
            # Waits for the linger time at most, so it must not hold the loop.
            await self._loop.run_in_executor(None, self._context.term)

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._socket is not None

    @property
    def context(self) -> Context:
        """The context it lives in, where what watches it must live, too."""
        if self._context is None:
            raise NotRunning("the socket is not open")
        return self._context

    def configure(self, options: Callable[[zmq.Socket[bytes]], None]) -> None:
        """Set further options, before the socket is bound or connected."""
        options(self._open_socket())

    def bind(self, endpoint: str) -> str:
        """Listen; returns the endpoint with the port that `tcp://host:*` was given.

        Raises:
            EndpointUnavailable: it is taken, or not an endpoint of this machine.
        """
        socket = self._open_socket()
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise EndpointUnavailable(f"cannot listen on {endpoint}: {error.strerror}") from error
        return str(socket.get_string(zmq.LAST_ENDPOINT)).rstrip("\0")

    def connect(self, endpoint: str) -> None:
        """Connect, now or whenever the peer appears. Raises `EndpointUnavailable`."""
        try:
            self._open_socket().connect(endpoint)
        except zmq.ZMQError as error:
            raise EndpointUnavailable(f"cannot connect to {endpoint}: {error.strerror}") from error
        # A peer inside the process is there at once, and no edge tells of its first message.
        self._look_soon()

    def connect_again(self, endpoint: str) -> None:
        """Connect anew where ZeroMQ has given up."""
        with suppress(zmq.ZMQError):  # it may have forgotten the endpoint already
            self._open_socket().disconnect(endpoint)
        self.connect(endpoint)

    def monitored(self, events: int) -> str:
        """Where a PAIR of the same context can hear of those events of this socket."""
        endpoint = f"inproc://monitor-{id(self)}"
        self._open_socket().monitor(endpoint, events)
        return endpoint

    def send(self, parts: Sequence[Part]) -> None:
        """Queue a message for sending.

        Raises:
            SendQueueFull: `max_queued` messages wait already, or a DEALER has no peer.
            PeerUnreachable: a ROUTER's peer is gone.
        """
        socket = self._open_socket()
        try:
            # pyzmq copies parts under 64 KiB all the same, which is faster for them.
            socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again as error:
            raise SendQueueFull(
                f"there is no connection to the peer, or {self._max_queued} frames wait for it"
            ) from error
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise PeerUnreachable("the peer is gone") from error
            raise
        finally:
            self._look_soon()  # one that fails may consume the edge as well

    def _open_socket(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            raise NotRunning("the socket is not open")
        return self._socket

    def _look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        for _ in range(_BURST):
            if not self._unread and not self._take_in():
                return
            try:
                if self._unread:
                    self._on_message(self._unread.popleft())
            except BaseException:
                self._look_soon()  # one message's fault must not strand those behind it
                raise
        self._look_soon()

    def _take_in(self) -> bool:
        """Take one message off the wire; False if there is none."""
        if self._socket is None:
            return False
        try:
            parts = self._receive(self._socket)
        except zmq.Again:
            return False
        self._unread.extend(self._split(parts))
        return True

    def _receive(self, socket: zmq.Socket[bytes]) -> list[Part]:
        frame = socket.recv(zmq.NOBLOCK, copy=False)
        parts: list[Part] = [frame.bytes if self._copy else frame]
        while frame.more:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            if len(parts) < self._max_parts:
                parts.append(frame.bytes if self._copy else frame)
        return parts


def _descriptor(socket: zmq.Socket[bytes]) -> int:
    return int(socket.get(zmq.FD))
