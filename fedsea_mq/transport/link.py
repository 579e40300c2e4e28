"""A client's or node's one connection to the broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import zmq

from fedsea_mq.errors import FedSeaError
from fedsea_mq.log import get_logger
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.transport.loop_socket import LoopSocket

_log = get_logger(__name__)


class BrokerLink:
    """Sends frames to the broker and hands on what comes back. Use with `async with`.

    ZeroMQ reconnects by itself: frames sent while the broker is away are queued up to
    `max_queued`, and requests are made again by whoever waits for an answer.
    """

    def __init__(
        self,
        endpoint: str,
        on_frame: Callable[[Frame], None],
        *,
        max_part_bytes: int,
        max_queued: int = 4096,
    ) -> None:
        self._endpoint = endpoint
        self._on_frame = on_frame
        self._socket = LoopSocket(
            zmq.DEALER,
            self._read,
            max_part_bytes=max_part_bytes,
            max_queued=max_queued,
            copy=True,
        )

    async def __aenter__(self) -> Self:
        await self._socket.__aenter__()
        try:
            self._socket.connect(self._endpoint)
        except BaseException:
            await self._socket.__aexit__()
            raise
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._socket.__aexit__(*reason)

    def send(self, parts: Parts) -> None:
        """Queue a frame for the broker. Raises `SendQueueFull`."""
        self._socket.send(parts)

    def _read(self, parts: list[bytes]) -> None:
        try:
            frame = Frame.read(parts)
        except FedSeaError as error:
            # Only the broker can write to this link; sizes and versions are safe to log.
            _log.warning("frame refused", reason=str(error))
            return
        self._on_frame(frame)
