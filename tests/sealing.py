"""Key files for sealed sessions, and a broker that meddles with what it relays."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker import Broker
from broker.messages import Send, Side
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Parts
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keys import read_public, write_pair
from fedsea_mq.security.seal_keys import OPERATOR, SIGNATURE, sign_node_key, write_line
from fedsea_mq.security.trust import TrustFolder
from fedsea_mq.settings import Settings


def node_key(folder: Path, name: str = "node") -> bytes:
    """Write a node's pair of keys; its public one."""
    return write_pair(folder, name).raw


def pin(folder: Path, name: str, *parties: Party) -> Path:
    """Trust a key as these parties, and as nothing else; the folder to name in the settings."""
    trust = TrustFolder(folder / "trust")
    for party in parties:
        (trust.path / f"{party.value}s" / "node.pub").unlink(missing_ok=True)
        trust.add(party, "node", read_public(folder / f"{name}.pub"))
    return trust.path


def sign(folder: Path, public: bytes, role: Role, name: str = "node") -> Path:
    """Have an operator sign a node's key; the operator's own to name in the settings."""
    operator, file = Ed25519PrivateKey.generate(), folder / "operator.pub"
    write_line(file, OPERATOR, operator.public_key().public_bytes_raw())
    write_line(folder / f"{name}.sig", SIGNATURE, sign_node_key(operator, role, public))
    return file


def sealed(folder: Path, *parties: Party) -> list[str]:
    """The settings of a system in which all parties seal, and have one key.

    It is trusted as these `parties`, by default as all.
    """
    node_key(folder)
    return [
        "security.seal=on",
        f"security.key={folder / 'node.key'}",
        f"security.broker_key={folder / 'node.pub'}",
        f"security.trust={pin(folder, 'node', *(parties or Party))}",
    ]


Meddle = Callable[[Side, Parts], Iterable[Parts]]


class MeddlingBroker(Broker):
    """A broker whose every message, to either side, goes through `meddle` first."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.broker, settings.security)
        self.meddle: Meddle = lambda _, parts: [parts]

    def _deliver(self, sends: Iterable[Send]) -> None:
        super()._deliver(
            Send(send.side, send.peer, changed)
            for send in sends
            for changed in self.meddle(send.side, [bytes(part) for part in send.parts])
        )


def kind_of(parts: Parts) -> Kind:
    return Envelope.decode(parts[0]).kind


def is_sealed_frame(parts: Parts) -> bool:
    """Whether a message is one of those that clients and nodes seal to each other."""
    plain = (Kind.OPEN, Kind.ENLIST, Kind.CLOSE, Kind.BUSY, Kind.ERROR)
    return bool(Envelope.decode(parts[0]).session) and kind_of(parts) not in plain


@dataclass
class Tap:
    """What the broker relays to either side, as it reads it."""

    relayed: list[Parts] = field(default_factory=list)

    def __call__(self, side: Side, parts: Parts) -> Iterable[Parts]:
        if Envelope.decode(parts[0]).session:
            self.relayed.append(parts)
        return [parts]


@dataclass
class Flips:
    """Changes one byte of every third message, in any part and place; and cuts some short."""

    rng: random.Random
    spares: frozenset[Kind] = frozenset()
    changed: int = 0
    seen: int = 0

    def __call__(self, side: Side, parts: Parts) -> Iterable[Parts]:
        if not is_sealed_frame(parts) or kind_of(parts) in self.spares:
            return [parts]
        self.seen += 1
        if self.seen % 3:
            return [parts]
        self.changed += 1
        number = self.rng.randrange(len(parts))
        part = bytearray(parts[number])
        if self.rng.random() < 0.1:
            del part[self.rng.randrange(len(part)) :]
        else:
            part[self.rng.randrange(len(part))] ^= self.rng.randrange(1, 256)
        return [[*parts[:number], bytes(part), *parts[number + 1 :]]]


@dataclass
class Mixes:
    """Swaps bodies and payloads between sessions, and sends each old message again and again."""

    rng: random.Random
    kept: list[Parts] = field(default_factory=list)
    mixed: int = 0

    def __call__(self, side: Side, parts: Parts) -> Iterable[Parts]:
        kind = kind_of(parts)
        if kind not in (Kind.EXTEND, Kind.RESULT):
            return [parts]
        same = [old for old in self.kept if kind_of(old) is kind]
        self.kept = [*self.kept[-63:], parts]
        if not same or self.rng.random() < 0.5:
            return [parts]
        self.mixed += 1
        old = self.rng.choice(same)
        mixes = [[old, parts], [parts, old], [[parts[0], *old[1:]]], [[old[0], *parts[1:]]]]
        return self.rng.choice(mixes)
