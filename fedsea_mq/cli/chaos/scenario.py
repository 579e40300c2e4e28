"""What a seed stands for: a system, its clients' work, and the faults that happen to them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Final

from fedsea_mq.cli.chaos.engines import KV_BYTES
from fedsea_mq.settings import Settings
from fedsea_mq.simulation.chain_model import VOCAB
from fedsea_mq.simulation.network import Weather

# The faults of a seed begin in this time, and each is over after at most so long.
FAULTY_S: Final = 4.0
LONGEST_S: Final = 8.0
GIVE_UP_S: Final = 40.0
# Where nothing is lost, nothing needs to be sent again so soon.
_PATIENT_S: Final = 5.0
# Shares of the seeds, each with those before it: many for few places, one trunk killed and nothing
# else, a broker that is away for a moment, and nothing but delays.
_CROWDED: Final = 0.06
_LONE: Final = 0.12
_BLINK: Final = 0.16
_CALM: Final = 0.24
_KV_POSITIONS_A_MB: Final = (1 << 20) // KV_BYTES


class Fault(StrEnum):
    """What can happen to a process or a way."""

    KILL_TRUNK = "kill trunk"
    KILL_BROKER = "kill broker"
    KILL_CLIENT = "kill client"
    LOSE_TRUNK = "cut power of trunk"
    LOSE_CLIENT = "cut power of client"
    DRAIN_TRUNK = "drain trunk"
    FREEZE_TRUNK = "freeze trunk"
    FREEZE_BROKER = "freeze broker"
    FREEZE_CLIENT = "freeze client"
    CUT_TRUNK = "cut trunk off"
    CUT_CLIENT = "cut client off"
    RESET_TRUNK = "reset trunk's connections"
    RESET_CLIENT = "reset client's connections"


@dataclass(frozen=True, slots=True)
class Event:
    """A fault at a time, of the party with this number among its kind, for so long."""

    at_s: float
    fault: Fault
    party: int
    seconds: float


class Kind(StrEnum):
    """What a client wants."""

    GENERATE = "generate"
    # On, back and away in the middle, in one session.
    WANDER = "wander"
    # Frames that no client of ours would send, to see them refused.
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Job:
    """What a client does.

    `leaves_after` tokens it loses interest. Between tokens it `dwells` for so long, once for
    `naps_s`.
    """

    kind: Kind
    after_s: float
    prompt: tuple[int, ...]
    new: int
    leaves_after: int | None = None
    dwells_s: float = 0.0
    naps_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A system, its load, its faults, and the weather of its network.

    Clients do their jobs side by side; where it `is_crowded` one after another, and without rest.
    Where it `recovers_soon`, no client is kept waiting for longer than a recovery may take; where
    it `keeps_sessions`, none is lost.
    """

    seed: int
    settings: Settings
    trunks: int
    tail_blocks: int
    jobs: tuple[tuple[Job, ...], ...]
    events: tuple[Event, ...]
    weather: Weather
    is_crowded: bool = False
    recovers_soon: bool = False
    keeps_sessions: bool = False

    @property
    def is_calm(self) -> bool:
        """Whether nothing happens but delays, and clients have patience with those."""
        patient = self.settings.client.request_timeout_s >= _PATIENT_S
        return patient and not self.events and not self.weather.is_worse_than_tcp


def scenario_of(seed: int) -> Scenario:
    """The scenario that a seed stands for."""
    draw = Random(f"{seed}/scenario")
    flavour = draw.random()
    if flavour < _CROWDED:
        return _crowded(seed, draw)
    if flavour < _LONE:
        return _lone(seed, draw)
    if flavour < _BLINK:
        return _blink(seed, draw)
    calm = flavour < _CALM
    trunks, clients = draw.choice((1, 2, 2, 3)), draw.choice((1, 2, 3, 4))
    settings = _settings(draw, calm=calm)
    return Scenario(
        seed,
        settings,
        trunks,
        draw.choice((0, 1)),
        tuple(_jobs(draw, settings) for _ in range(clients)),
        () if calm else _events(draw, trunks, clients),
        _weather(draw, calm=calm),
        keeps_sessions=calm,
    )


def _crowded(seed: int, draw: Random) -> Scenario:
    """Many short sessions for one place or two: who gets it?"""
    slots = draw.choice((1, 2))
    settings = _settings(draw, calm=True).replace(trunk={"max_sessions": slots})
    jobs = tuple(
        tuple(
            Job(Kind.GENERATE, 1.0 + draw.random() * 0.05, (1, 2, 3), draw.randint(2, 6))
            for _ in range(draw.randint(3, 6))
        )
        for _ in range(slots + draw.randint(1, 3))
    )
    weather = _weather(draw, calm=True)
    return Scenario(seed, settings, 1, 0, jobs, (), weather, is_crowded=True, keeps_sessions=True)


def _lone(seed: int, draw: Random) -> Scenario:
    """One trunk dies, and another has room for all: how long does that take?"""
    jobs = tuple(
        (Job(Kind.GENERATE, draw.random(), (1, 2, 3) * draw.randint(1, 8), 8, dwells_s=0.3),)
        for _ in range(2)
    )
    # What was cached goes in one frame, so that sending it again takes little of that time.
    settings = _settings(draw, calm=True).replace(
        trunk={"max_sessions": 64, "max_frame_positions": 64, "step_positions": 256, "direct": None}
    )
    fault = draw.choice((Fault.KILL_TRUNK, Fault.LOSE_TRUNK))
    killed = Event(0.5 + 2 * draw.random(), fault, draw.randrange(2), LONGEST_S)
    weather = _weather(draw, calm=True)
    return Scenario(seed, settings, 2, 1, jobs, (killed,), weather, recovers_soon=True)


def _blink(seed: int, draw: Random) -> Scenario:
    """The broker is started again at once: sessions go on as if nothing had been."""
    jobs = tuple(
        (Job(Kind.GENERATE, draw.random(), (1, 2, 3) * draw.randint(1, 8), 8, dwells_s=0.3),)
        for _ in range(draw.randint(1, 3))
    )
    settings = _settings(draw, calm=False).replace(
        broker={"heartbeat_ms": 500, "timeout_ms": 2000, "max_queued_frames": 1024},
        trunk={"max_sessions": 64, "lease_s": 6.0},
    )
    killed = Event(0.5 + 2 * draw.random(), Fault.KILL_BROKER, 0, 0.1)
    weather = _weather(draw, calm=True)
    return Scenario(seed, settings, 2, 1, jobs, (killed,), weather, keeps_sessions=True)


def _settings(draw: Random, *, calm: bool) -> Settings:
    heartbeat_ms = draw.choice((200, 500))
    fields: dict[str, dict[str, Any]] = {
        "broker": {
            "heartbeat_ms": heartbeat_ms,
            "timeout_ms": heartbeat_ms * draw.choice((2, 4)),
            "max_queued_frames": draw.choice((16, 64, 1024)),
        },
        "trunk": {
            "kv_memory_mb": 1,
            "max_sessions": draw.choice((1, 2, 4, 64)),
            "max_frame_positions": draw.choice((4, 16, 64)),
            "step_positions": draw.choice((8, 32, 256)),
            "max_wait_ms": draw.choice((0.0, 5.0)),
            "lease_s": draw.choice((1.5, 3.0)),
            "drain_s": draw.choice((0.0, 2.0)),
            "direct": "tcp://127.0.0.1:*" if draw.random() < 0.4 else None,
        },
        "client": {
            "request_timeout_s": _PATIENT_S if calm else draw.choice((0.3, 1.0)),
            "give_up_s": GIVE_UP_S,
            "speculation": draw.choice(("off", "off", "lookup")),
            "max_draft": 3,
            "direct": draw.random() < 0.7,
        },
    }
    return Settings.model_validate(fields)


def _jobs(draw: Random, settings: Settings) -> tuple[Job, ...]:
    return tuple(_job(draw, settings) for _ in range(draw.choice((1, 1, 2, 3))))


def _job(draw: Random, settings: Settings) -> Job:
    length = draw.choice((1, 3, 9, 40))
    new = draw.randint(1, 8)
    return Job(
        kind=draw.choice((Kind.GENERATE,) * 5 + (Kind.WANDER,) * 2 + (Kind.PROBE,)),
        after_s=draw.random() * FAULTY_S / 2,
        prompt=tuple(draw.randrange(VOCAB) for _ in range(length)),
        new=new,
        leaves_after=draw.randint(0, new) if draw.random() < 0.15 else None,
        dwells_s=draw.choice((0.0, 0.0, 0.1, 0.3)),
        naps_s=1.5 * settings.trunk.lease_s if draw.random() < 0.1 else 0.0,
    )


def _weather(draw: Random, *, calm: bool) -> Weather:
    delay_s, jitter_s = draw.choice((0.0005, 0.005, 0.02)), draw.choice((0.0, 0.002, 0.02))
    if calm or draw.random() < 0.5:
        return Weather(delay_s, jitter_s)
    # Not so late and so often that nodes seem to be dead all the time.
    overtaken, late_s = draw.choice(((0.0, 0.02), (0.5, 0.02), (0.5, 0.1), (0.1, 0.2), (0.1, 1.0)))
    return Weather(
        delay_s,
        jitter_s,
        lost=draw.choice((0.0, 0.02, 0.1)),
        doubled=draw.choice((0.0, 0.05, 0.3)),
        overtaken=overtaken,
        late_s=late_s,
    )


def _events(draw: Random, trunks: int, clients: int) -> tuple[Event, ...]:
    faults = list(Fault)
    events = [_event(draw, draw.choice(faults), trunks, clients) for _ in range(draw.randint(0, 5))]
    return tuple(sorted(events, key=lambda event: event.at_s))


def _event(draw: Random, fault: Fault, trunks: int, clients: int) -> Event:
    many = trunks if "trunk" in fault else clients if "client" in fault else 1
    seconds = draw.choice((0.05, 0.5, 1.5, 4.0, LONGEST_S)) * (0.5 + draw.random() / 2)
    return Event(draw.random() * FAULTY_S, fault, draw.randrange(many), seconds)
