"""The network between simulated processes: late, lossy and cut, as the weather of a seed says.

A `Wire` is one connection of a DEALER to a ROUTER, with what ZeroMQ makes of it: it is made again
when it broke, under a new number at the ROUTER; what was under way is lost, what waited at the
DEALER is not. Between two breaks messages come in order, unless the weather is worse than TCP's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

import zmq

from fedsea_mq.simulation.frames_seen import described
from fedsea_mq.simulation.world import Process, World

if TYPE_CHECKING:
    from fedsea_mq.simulation.sockets import SimulatedSocket

Message = list[bytes]
# How long a connection takes, and when it is tried again.
_HANDSHAKE_S: Final = 0.005
_FIRST_RETRY_S: Final = 0.1
_LAST_RETRY_S: Final = 2.0
# Whoever is frozen or behind a cut longer than this has its connections broken.
SILENCE_S: Final = 6.0
# Where an end of a connection that is gone is heard of.
_NOTICE_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network does to messages: seconds, and shares of messages.

    `lost`, `doubled` and `overtaken` are what TCP does not do within one connection. What is
    overtaken is `late_s` later, more or less.
    """

    delay_s: float = 0.001
    jitter_s: float = 0.001
    lost: float = 0.0
    doubled: float = 0.0
    overtaken: float = 0.0
    late_s: float = 0.05

    @property
    def is_worse_than_tcp(self) -> bool:
        """Whether messages of one connection do not come once each, and in order."""
        return bool(self.lost or self.doubled or self.overtaken)


class Network:
    """Who listens where, and which ways are cut."""

    def __init__(self, world: World, weather: Weather, seed: str) -> None:
        self.world = world
        self.weather = weather
        self.random = Random(f"{seed}/network")
        self.listening: dict[str, SimulatedSocket] = {}
        # Told of each message that a DEALER sends.
        self.spies: list[Callable[[str, Message], None]] = []
        self._cut_until: dict[frozenset[str], float] = {}
        self._wires: list[Wire] = []
        self._numbers = 0

    def number(self) -> int:
        """One that was not given before: of a peer, a port or a descriptor."""
        self._numbers += 1
        return self._numbers

    def cut(self, one: str, other: str, seconds: float) -> None:
        """Hold back all between two hosts for so long; long silence breaks connections."""
        until = self.world.now + seconds
        self._cut_until[frozenset((one, other))] = until
        if seconds > SILENCE_S:
            self.world.at(self.world.now + SILENCE_S, self.break_between, one, other)

    def cut_until(self, one: str, other: str) -> float:
        """When the way between two hosts is open again; in the past if it is."""
        return self._cut_until.get(frozenset((one, other)), 0.0)

    def heal(self) -> None:
        """End all cuts, and the bad weather; what is held back comes when it would have."""
        self._cut_until.clear()
        self.weather = Weather(self.weather.delay_s, self.weather.jitter_s)

    def break_between(self, one: str, other: str) -> None:
        """Reset the connections between two hosts."""
        for wire in self._wires:
            if wire.is_up and {one, other} == wire.hosts:
                wire.break_off()

    def break_all_of(self, host: str) -> None:
        """Reset the connections of a host."""
        for wire in self._wires:
            if wire.is_up and host in wire.hosts:
                wire.break_off()

    def freeze(self, process: Process, seconds: float) -> None:
        """Stop a process for a while; its connections time out if that is long."""
        process.freeze(seconds)
        if seconds > SILENCE_S:
            self.world.at(self.world.now + SILENCE_S, self.break_all_of, process.name)

    def connect(self, dealer: SimulatedSocket, endpoint: str) -> Wire:
        """The wire of a socket that was told to connect."""
        self._wires = [wire for wire in self._wires if not wire.is_over]
        wire = Wire(self, dealer, endpoint)
        self._wires.append(wire)
        return wire

    def delay_s(self) -> float:
        """How long the next message takes."""
        mean = self.weather.jitter_s
        return self.weather.delay_s + (self.random.expovariate(1 / mean) if mean else 0.0)


@dataclass(slots=True, eq=False)
class Way:
    """One direction of a connection: when its last message arrives, how many are not read yet.

    `name` is what the ROUTER knows its peer by.
    """

    source: SimulatedSocket
    target: SimulatedSocket
    name: bytes
    last_at: float = 0.0
    under_way: int = 0


@dataclass(slots=True, eq=False)
class Wire:
    """A DEALER's connection to whoever listens at an endpoint."""

    network: Network
    dealer: SimulatedSocket
    endpoint: str
    is_over: bool = False
    # What waits for the connection.
    waiting: deque[Message] = field(default_factory=deque)
    _up: Way | None = None
    _down: Way | None = None
    # Connections made; what was under way on an earlier one never comes.
    _epoch: int = 0
    _retry_s: float = _FIRST_RETRY_S

    def __post_init__(self) -> None:
        self._try_in(_HANDSHAKE_S)

    @property
    def is_up(self) -> bool:
        """Whether there is a connection."""
        return self._up is not None

    @property
    def hosts(self) -> set[str]:
        """Both ends of the connection."""
        assert self._up is not None
        return {self._up.source.process.name, self._up.target.process.name}

    def _try_in(self, seconds: float) -> None:
        self.network.world.at(self.network.world.now + seconds, self._try)

    def _try(self) -> None:
        if self.is_over or self.is_up:
            return
        listener = self.network.listening.get(self.endpoint)
        if listener is None or not self._reaches(listener):
            self._try_in(self._retry_s)
            self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
            return
        self._retry_s = _FIRST_RETRY_S
        self._epoch += 1
        name = b"\0" + self.network.number().to_bytes(4, "big")
        self._up = Way(self.dealer, listener, name)
        self._down = Way(listener, self.dealer, name)
        listener.peers[name] = self
        self.network.world.say(
            self.dealer.process.name, f"connected to {listener.process.name} as {name.hex()}"
        )
        waiting, self.waiting = self.waiting, deque()
        for message in waiting:
            self._send(self._up, message)

    def _reaches(self, listener: SimulatedSocket) -> bool:
        now, here, there = self.network.world.now, self.dealer.process, listener.process
        return (
            not here.is_frozen
            and not there.is_frozen
            and self.network.cut_until(here.name, there.name) <= now
        )

    def send_up(self, message: Message) -> None:
        """From the DEALER. Raises `zmq.Again` if as much waits as may."""
        for spy in self.network.spies:
            spy(self.dealer.process.name, message)
        if self._up is not None:
            self._send(self._up, message)
        elif len(self.waiting) >= self.dealer.send_limit:
            raise zmq.Again
        else:
            self.waiting.append(message)

    def send_down(self, message: Message) -> None:
        """From the ROUTER. Raises `zmq.Again` if as much waits as may."""
        assert self._down is not None
        self._send(self._down, message)

    def _send(self, way: Way, message: Message) -> None:
        if way.under_way >= way.source.send_limit + way.target.receive_limit:
            raise zmq.Again
        network, weather = self.network, self.network.weather
        if weather.lost and network.random.random() < weather.lost:
            self._say(way, message, "LOST")
            return
        self._pass_on(way, message, "->")
        if weather.doubled and network.random.random() < weather.doubled:
            self._pass_on(way, message, "-> again")

    def _pass_on(self, way: Way, message: Message, how: str) -> None:
        network, world = self.network, self.network.world
        open_at = network.cut_until(way.source.process.name, way.target.process.name)
        when = max(world.now, open_at) + network.delay_s()
        weather = network.weather
        if weather.overtaken and network.random.random() < weather.overtaken:
            when += network.random.expovariate(1 / weather.late_s)
        else:
            when = way.last_at = max(when, way.last_at)
        way.under_way += 1
        self._say(way, message, how)
        world.at(when, self._arrive, way, message, self._epoch)

    def _say(self, way: Way, message: Message, how: str) -> None:
        world = self.network.world
        if world.trace.is_wanted:
            names = way.source.process.name, way.target.process.name
            world.say(names[0], f"{how} {names[1]}: {described(message)}")

    def _arrive(self, way: Way, message: Message, epoch: int) -> None:
        if epoch == self._epoch and self.is_up:
            way.target.take(way, message)

    def break_off(self) -> None:
        """The connection is gone at once, and what was under way with it."""
        if self._up is None or self._down is None:
            return
        listener, name = self._up.target, self._up.name
        self.network.world.say(self.dealer.process.name, f"lost {listener.process.name}")
        listener.forget(name)
        self.dealer.forget_unread()
        self._up = self._down = None
        self._epoch += 1
        if not self.is_over:
            self._try_in(self._retry_s * (0.5 + self.network.random.random()))

    def end_from(self, socket: SimulatedSocket) -> None:
        """One end closed: the other hears of it after what was sent before."""
        if socket is self.dealer:
            self.is_over = True
        if self._up is None or self._down is None:
            return
        way = self._up if socket is self.dealer else self._down
        last = max(self.network.world.now, way.last_at) + _NOTICE_S
        self.network.world.at(last, self._ended, self._epoch)

    def _ended(self, epoch: int) -> None:
        if epoch == self._epoch:
            self.break_off()


def sent(parts: Sequence[bytes]) -> Message:
    """A message as it travels: parts that nobody changes."""
    return [bytes(part) for part in parts]
