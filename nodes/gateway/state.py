"""`GET /v1/fedsea/state`: what is hidden and how well, what it cost, what the trunk does now."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from time import monotonic
from typing import Any, Final

from fedsea_mq.errors import RemoteError
from fedsea_mq.privacy.audited import finding
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.messages import NodeStatus
from fedsea_mq.settings import Settings
from nodes.client import ClientNode
from nodes.gateway.admission import Admission
from nodes.gateway.meter import WINDOW_S, Meter
from nodes.gateway.models import Models

# Whoever looks at a page does not wait for long.
_GIVE_UP_S: Final = 2.0
# Who asks again and again, as anybody may, gets what is known.
_FRESH_S: Final = 1.0


class State:
    """What there is to see of a gateway.

    Raises `ConfigError`, if `noise.audit` is not the report of an audit.
    """

    def __init__(
        self,
        client: ClientNode,
        settings: Settings,
        models: Models,
        meter: Meter,
        admission: Admission,
    ) -> None:
        self._client = client
        self._models = models
        self._meter = meter
        self._admission = admission
        self._privacy = _privacy(client, settings)
        self._asking = asyncio.Lock()
        self._seen: list[NodeStatus] | RemoteError = []
        self._stale_at = 0.0

    async def now(self) -> dict[str, Any]:
        """All of it; the trunk's part is an `error` while the broker cannot be asked."""
        traffic = self._meter.traffic
        return {
            "models": self._models.listed()["data"],
            "privacy": self._privacy,
            "traffic": {
                "bytes_sent": traffic.bytes_up,
                "bytes_received": traffic.bytes_down,
                "tokens": self._meter.tokens,
                "tokens_per_s": self._meter.tokens_per_s,
                "over_s": WINDOW_S,
            },
            "requests": {"now": self._admission.now, "most": self._admission.most},
            "trunk": await self._trunk(),
        }

    async def ready(self) -> bool:
        """Whether a request could be served."""
        try:
            return any(node.takes_sessions for node in await self._nodes())
        except RemoteError:
            return False

    async def _trunk(self) -> dict[str, Any]:
        try:
            return {"nodes": [_node(node) for node in await self._nodes()]}
        except RemoteError as error:
            return {"error": {"code": error.code, "message": str(error)}}

    async def _nodes(self) -> list[NodeStatus]:
        """The trunk nodes that this client may be placed on; asked for once for all who look."""
        async with self._asking:
            if monotonic() >= self._stale_at:
                self._seen = await self._asked()
                self._stale_at = monotonic() + _FRESH_S
        if isinstance(self._seen, RemoteError):
            raise self._seen.with_traceback(None)  # of who asked before, and grows
        return self._seen

    async def _asked(self) -> list[NodeStatus] | RemoteError:
        try:
            report = await self._client.status(_GIVE_UP_S)
        except RemoteError as error:
            return error
        mine = self._client.model.fingerprint
        return [n for n in report.nodes if n.role is Role.TRUNK and n.fingerprint == mine]


def _privacy(client: ClientNode, settings: Settings) -> dict[str, Any]:
    noise = settings.noise
    found = finding(noise, client.model.fingerprint)
    return {
        "mode": noise.mode.value,
        "scale": noise.scale,
        "sigma": client.noise_std,
        "sigma_unit": "standard deviation of the noise on each element of the states sent",
        "head_rms": client.model.head_rms,
        "sealed": settings.security.seal == "on",
        "recovery": None if found is None else {**asdict(found), "says": str(found)},
        "max_recovery": noise.max_recovery,
    }


def _node(node: NodeStatus) -> dict[str, Any]:
    load = node.load
    held = load.kv_positions_total - load.kv_positions_free
    return {
        "name": node.name,
        "silent_ms": node.silent_ms,
        "takes_sessions": node.takes_sessions,
        "sessions": load.sessions,
        "mean_batch": load.mean_batch,
        "busy_share": load.busy_share,
        "positions_per_s": load.positions_per_s,
        "kv_share": held / max(1, load.kv_positions_total),
    }
