"""Keys of several parties in one folder, and settings that use them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker import Broker
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keys import PublicKey, read_public, write_pair
from fedsea_mq.security.trust import TrustFolder
from fedsea_mq.settings import Settings
from nodes import ClientNode, TrunkNode
from tests.integration.systems import EXACT


@dataclass(frozen=True, slots=True)
class Keys:
    """A key each for broker and whoever is named, and a folder of whom the broker trusts."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, **trusted: Party) -> Keys:
        keys = cls(folder)
        for name in ("broker", "stranger", *trusted):
            write_pair(folder, name)
        (folder / "trust").mkdir(mode=0o755)
        for name, party in trusted.items():
            keys.trust.add(party, name, keys.public(name))
        return keys

    @property
    def trust(self) -> TrustFolder:
        return TrustFolder(self.folder / "trust")

    def public(self, name: str) -> PublicKey:
        return read_public(self.folder / f"{name}.pub")

    def settings(self, settings: Settings, name: str) -> Settings:
        """As this party has them; a name that there is no key of has none."""
        if name == "nobody":
            return settings
        security = {
            "key": str(self.folder / f"{name}.key"),
            "broker_key": str(self.folder / "broker.pub"),
            "trust": str(self.trust.path),
        }
        return settings.replace(security=security)


@dataclass(frozen=True, slots=True)
class KeyedSystem:
    """A broker and a trunk node with keys of their own."""

    keys: Keys
    settings: Settings
    broker: Broker
    trunk: TrunkNode

    def client(self, name: str, **client: Any) -> ClientNode:
        """A client with that party's key, and with other values in the section `client`."""
        return ClientNode(self.of(name).replace(client=client))

    def of(self, name: str) -> Settings:
        """The settings of a party."""
        return self.keys.settings(self.settings, name)


@asynccontextmanager
async def keyed(model: Path, keys: Keys, *overrides: str) -> AsyncIterator[KeyedSystem]:
    """Broker and trunk node `rack` on free ports."""
    plain = Settings.load(None, [*EXACT, f"model.path={model}", *overrides])
    async with AsyncExitStack() as stack:
        own = keys.settings(plain, "broker")
        broker = await stack.enter_async_context(Broker(own.broker, own.security))
        plain = plain.replace(broker={"clients": broker.clients, "nodes": broker.nodes})
        trunk = await stack.enter_async_context(TrunkNode(keys.settings(plain, "rack")))
        await trunk.registered()
        yield KeyedSystem(keys, plain, broker, trunk)
