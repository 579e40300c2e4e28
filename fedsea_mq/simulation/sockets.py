"""ZeroMQ as the transport uses it, over the simulated network: the calls and the errors of pyzmq.

So the transport itself runs in a simulation as it does elsewhere: how it drains a socket whose
descriptor tells of an edge only, what it makes of a peer that is gone and of a queue that is full.
Endpoints inside a process (`inproc`) lead nowhere: connections are not limited here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

import zmq

from fedsea_mq.simulation.network import SILENCE_S, Message, Network, Way, Wire, sent
from fedsea_mq.simulation.world import Process
from fedsea_mq.transport.loop_socket import Context

_UNLIMITED: Final = 1000
_INSIDE: Final = "inproc://"


class NothingThere(zmq.Again):
    """`zmq.Again` without a look at the system's message for it."""

    def __init__(self) -> None:
        self.errno = zmq.EAGAIN


class Part(bytes):
    """A received part, as `zmq.Frame` is read."""

    more = False

    @property
    def bytes(self) -> Part:
        """What it holds."""
        return self


class SimulatedContext:
    """Makes the sockets of one process. They are closed with it, as the system would.

    If it `vanishes`, its machine ends with it: nobody is told, and the others find out by silence.
    """

    def __init__(self, process: Process, network: Network) -> None:
        self._process = process
        self._network = network
        self._sockets: list[SimulatedSocket] = []
        self.vanishes = False
        process.on_end.append(self._ended)

    def of_zmq(self) -> Context:
        """The same, for who asks for ZeroMQ's."""
        return cast(Context, self)

    def socket(self, kind: int) -> SimulatedSocket:
        """A new socket."""
        made = SimulatedSocket(kind, self._process, self._network)
        self._sockets.append(made)
        return made

    def _ended(self) -> None:
        if self.vanishes:
            world = self._network.world
            world.at(world.now + SILENCE_S, self._close_all)
        else:
            self._close_all()

    def _close_all(self) -> None:
        for socket in self._sockets:
            socket.close()


class SimulatedSocket:
    """A DEALER or ROUTER."""

    def __init__(self, kind: int, process: Process, network: Network) -> None:
        self.process = process
        self._kind = kind
        self._network = network
        self._descriptor = network.number()
        self._options: dict[int, Any] = {}
        self._endpoint = ""
        self._wire: Wire | None = None
        self._is_open = True
        self.peers: dict[bytes, Wire] = {}
        self._unread: deque[tuple[Way, Message]] = deque()
        self._parts: deque[Part] = deque()
        self._edge = False

    @property
    def send_limit(self) -> int:
        """Messages that may wait to be sent."""
        return int(self._options.get(zmq.SNDHWM, _UNLIMITED))

    @property
    def receive_limit(self) -> int:
        """Messages that may wait to be read."""
        return int(self._options.get(zmq.RCVHWM, _UNLIMITED))

    def set(self, option: int, value: Any) -> None:
        """Only the limits mean anything here."""
        self._options[option] = value

    def get(self, option: int) -> int:
        """The descriptor."""
        assert option == zmq.FD
        return self._descriptor

    def get_string(self, option: int) -> str:
        """Where it listens."""
        assert option == zmq.LAST_ENDPOINT
        return self._endpoint

    def monitor(self, endpoint: str, events: int) -> None:
        """Nobody tells."""

    def bind(self, endpoint: str) -> None:
        """Listen."""
        if endpoint.startswith(_INSIDE):
            return
        if endpoint.endswith(":*"):
            endpoint = f"{endpoint[:-1]}{10_000 + self._network.number() % 50_000}"
        if endpoint in self._network.listening:
            raise zmq.ZMQError(zmq.EADDRINUSE)
        self._endpoint = endpoint
        self._network.listening[endpoint] = self

    def connect(self, endpoint: str) -> None:
        """Connect now, or when somebody listens there."""
        if not endpoint.startswith(_INSIDE):
            self._wire = self._network.connect(self, endpoint)

    def close(self) -> None:
        """What was sent still arrives."""
        if not self._is_open:
            return
        self._is_open = False
        if self._network.listening.get(self._endpoint) is self:
            del self._network.listening[self._endpoint]
        wires = [*self.peers.values(), *([] if self._wire is None else [self._wire])]
        for wire in wires:
            wire.end_from(self)

    def send_multipart(self, parts: Sequence[Any], flags: int, copy: bool = True) -> None:
        """Send without waiting. Raises what pyzmq does."""
        assert flags == zmq.NOBLOCK
        # A send deals with what the descriptor would have told of.
        self._edge = False
        if not self.process.alive:
            return
        if self._kind == zmq.DEALER:
            assert self._wire is not None
            self._wire.send_up(sent(parts))
        else:
            wire = self.peers.get(bytes(parts[0]))
            if wire is None:
                raise zmq.ZMQError(zmq.EHOSTUNREACH)
            wire.send_down(sent(parts[1:]))

    def take(self, way: Way, message: Message) -> None:
        """A message arrives."""
        if not self._is_open:
            return
        self._unread.append((way, message))
        if not self._edge:
            self._edge = True
            self._network.world.at(self._network.world.now, self._tell)

    def _tell(self) -> None:
        if self._edge:
            self.process.readable(self._descriptor)

    def forget(self, peer: bytes) -> None:
        """A peer of this ROUTER is gone; what it sent before may still be read."""
        self.peers.pop(peer, None)

    def forget_unread(self) -> None:
        """The connection of this DEALER is gone, and what was not read of it with it."""
        self._unread.clear()

    def recv(self, flags: int, copy: bool = True) -> Part:
        """The next part of a message. Raises `zmq.Again` if there is none."""
        assert flags == zmq.NOBLOCK
        if not self._parts:
            self._edge = False
            if not self._unread:
                raise NothingThere
            way, message = self._unread.popleft()
            way.under_way -= 1
            named = message if self._kind == zmq.DEALER else [way.name, *message]
            self._parts.extend(Part(part) for part in named)
        part = self._parts.popleft()
        part.more = bool(self._parts)
        return part
