"""Ask a broker for its status report, without a model."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

from fedsea_mq.errors import MalformedFrame, RemoteError
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame
from fedsea_mq.protocol.messages import Nothing, StatusReport
from fedsea_mq.security.keyring import Keyring
from fedsea_mq.security.settings import NO_KEYS, SecuritySection
from fedsea_mq.settings import BrokerSettings
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.requests import Patience, Requests

_PATIENCE = Patience(resend_s=1.0, give_up_s=5.0)


class StatusWatch:
    """A link that only asks for reports. Use with `async with`."""

    def __init__(self, settings: BrokerSettings, security: SecuritySection = NO_KEYS) -> None:
        self._link = PeerLink(
            settings.clients,
            self._receive,
            max_part_bytes=settings.max_part_mb << 20,
            keys=Keyring.load(security).to_broker(settings.clients),
            on_refused=self._refused,
        )
        self._requests = Requests(self._link.send, _PATIENCE, settings.at)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._link)
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._stack.aclose()

    def _receive(self, frame: Frame) -> None:
        self._requests.receive(frame)

    def _refused(self, error: RemoteError) -> None:
        self._requests.refuse(error)

    async def report(self) -> StatusReport:
        """The broker's report now.

        Raises:
            PeerUnreachable: there is no broker.
            NotTrusted: there is one, which does not trust this process's key.
        """
        return await status_report(self._requests)


async def status_report(requests: Requests, give_up_s: float | None = None) -> StatusReport:
    """The report of the broker that these requests go to; raises as `StatusWatch.report`."""
    reply = await requests.ask(Kind.STATUS, Nothing(), give_up_s=give_up_s)
    if reply.envelope.kind is not Kind.STATUS_REPORT:
        raise MalformedFrame(f"a {reply.envelope.kind.name} frame in reply to status")
    return reply.body(StatusReport)
