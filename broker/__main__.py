"""`python -m broker --config FILE`: a broker until SIGTERM."""

from __future__ import annotations

import ctypes
import secrets
import sys

from broker.server import Broker
from fedsea_mq.entry import announce, run_process, settings_from_arguments, stop_asked
from fedsea_mq.settings import Settings


async def serve(settings: Settings) -> None:
    """Serve until asked to stop."""
    async with Broker(settings.broker) as broker:
        announce(ready="broker", clients=broker.clients, nodes=broker.nodes)
        await stop_asked()


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq broker", arguments)
    _begin_numbers_anywhere()
    return run_process(serve(settings), settings)


def _begin_numbers_anywhere() -> None:
    """Seed C's `rand`, from which libzmq takes the first of the numbers that it gives its peers.

    Nobody else seeds it, so it would be the same in every process; and libzmq 4.3 aborts the
    process if a peer has claimed the number that comes up (see docs/privacy.md).
    """
    ctypes.CDLL(None).srand(secrets.randbits(32))


if __name__ == "__main__":
    sys.exit(main())
