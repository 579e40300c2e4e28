"""A broker that changes what it relays, between a client and a node that seal their sessions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Final

from broker.messages import Send
from broker.server import Broker
from fedsea_mq.cli.chaos.attacks.catalogue import Succeeded
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Parts
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keys import read_public, write_pair
from fedsea_mq.security.trust import TrustFolder
from fedsea_mq.settings import Settings
from nodes.client.node import ClientNode
from nodes.trunk.node import TrunkNode

_PROMPT: Final = list(range(2, 22))
_SAMPLING: Final = SamplingSettings(max_new_tokens=24, ignore_eos=True)
_EVERY: Final = 3
_CHANGES: Final = frozenset({Kind.EXTEND, Kind.RESULT})


class MeddlingBroker(Broker):
    """Changes a byte of every third frame of states, once told to."""

    rng = Random()
    meddles = False
    seen = 0
    changed = 0

    def _deliver(self, sends: Iterable[Send]) -> None:
        super()._deliver(
            Send(send.side, send.peer, self._meddled([bytes(part) for part in send.parts]))
            for send in sends
        )

    def _meddled(self, parts: Parts) -> Parts:
        if not self.meddles or Envelope.decode(parts[0]).kind not in _CHANGES:
            return parts
        self.seen += 1
        if self.seen % _EVERY:
            return parts
        self.changed += 1
        at = self.rng.randrange(1, len(parts))
        part = bytearray(parts[at])
        part[self.rng.randrange(len(part))] ^= self.rng.randrange(1, 256)
        return [*parts[:at], bytes(part), *parts[at + 1 :]]


async def tampered_ciphertext(settings: Settings) -> str:
    """In this process: generate undisturbed, then through a broker that changes frames."""
    with tempfile.TemporaryDirectory(prefix="fedsea-keys-") as folder:
        sealed = _sealed(settings, Path(folder))
        async with AsyncExitStack() as stack:
            broker = MeddlingBroker(sealed.broker, sealed.security)
            await stack.enter_async_context(broker)
            sealed = sealed.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
            trunk = await stack.enter_async_context(TrunkNode(sealed))
            await trunk.registered()
            client = await stack.enter_async_context(ClientNode(sealed))
            wanted = await client.generate(_PROMPT, _SAMPLING).complete()
            broker.meddles = True
            got = await client.generate(_PROMPT, _SAMPLING).complete()
            broker.meddles = False
    if got.tokens != wanted.tokens:
        raise Succeeded("other tokens came out")
    if not broker.changed:
        raise Succeeded("nothing was changed: nothing was shown")
    return f"noticed: {broker.changed} frames changed, sent again, the same tokens"


def _sealed(settings: Settings, folder: Path) -> Settings:
    write_pair(folder, "own")
    trust = TrustFolder(folder / "trust")
    for party in (Party.CLIENT, Party.TRUNK):
        trust.add(party, "own", read_public(folder / "own.pub"))
    free = "tcp://127.0.0.1:*"
    return settings.replace(
        broker={"clients": free, "nodes": free},
        client={"request_timeout_s": 0.1},
        security={
            "seal": "on",
            "key": str(folder / "own.key"),
            "broker_key": str(folder / "own.pub"),
            "trust": str(trust.path),
        },
    )
