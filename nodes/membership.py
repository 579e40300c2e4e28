"""A trunk node's standing with the broker: registers, keeps the heartbeat, registers again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fedsea_mq.errors import NodeUnknown
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.envelope import Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Load, Nothing, Register, Registered

_log = get_logger(__name__)
_REGISTER_AGAIN_S = 1.0


def _bear_it() -> None:
    return None


class Membership:
    """Runs for the node's whole life. `offer` and `load` are asked for anew each time.

    `on_silence` is told when the broker has said nothing for longer than its own timeout.
    """

    def __init__(
        self,
        send: Callable[[Parts], None],
        offer: Callable[[], Register],
        load: Callable[[], Load],
        on_silence: Callable[[], None] = _bear_it,
        broker: str = "the broker",
    ) -> None:
        self._send = send
        self._offer = offer
        self._load = load
        self._on_silence = on_silence
        # Which one, for the log.
        self._broker = broker
        self._terms: Registered | None = None
        self._heard = asyncio.Event()
        self.registered = asyncio.Event()

    def receive(self, frame: Frame) -> None:
        """Handle a frame from the broker itself."""
        match frame.envelope.kind:
            case Kind.REGISTERED:
                self._terms = frame.body(Registered)
                self.registered.set()
                _log.info("registered", broker=self._broker)
            case Kind.HEARTBEAT:
                self._heard.set()
            case Kind.ERROR:
                self._refused(frame.refusal())
            case kind:
                _log.warning("unexpected frame from the broker", kind=kind.name)

    def _refused(self, refusal: Exception | None) -> None:
        if isinstance(refusal, NodeUnknown):
            self.registered.clear()
        _log.warning("refused by the broker", broker=self._broker, reason=str(refusal))

    async def run(self) -> None:
        """Register, then send heartbeats; start over when the broker forgot us or fell silent."""
        while True:
            await self._register()
            await self._beat()

    async def _register(self) -> None:
        while not self.registered.is_set():
            self._tell(Kind.REGISTER, self._offer())
            await _within(self.registered, _REGISTER_AGAIN_S)

    async def _beat(self) -> None:
        assert self._terms is not None
        silent_ms = 0
        while self.registered.is_set():
            self._heard.clear()
            self._tell(Kind.HEARTBEAT, self._load())
            await asyncio.sleep(self._terms.heartbeat_ms / 1000)
            silent_ms = 0 if self._heard.is_set() else silent_ms + self._terms.heartbeat_ms
            if silent_ms >= self._terms.timeout_ms:
                _log.warning("the broker is silent", broker=self._broker, silent_ms=silent_ms)
                self.registered.clear()
                self._on_silence()

    def say_again(self) -> None:
        """Tell the broker what the node holds, if it knows the node: it may not know it all."""
        if self.registered.is_set():
            self._tell(Kind.REGISTER, self._offer())

    def leave(self) -> None:
        """Tell the broker that this node is gone."""
        self._tell(Kind.LEAVE, Nothing())

    def _tell(self, kind: Kind, body: Register | Load | Nothing) -> None:
        self._send(Frame.build(kind, body).parts())


async def _within(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
