"""`python -m broker --config FILE`: a broker until SIGTERM."""

from __future__ import annotations

import sys

from broker.server import Broker
from fedsea_mq.entry import (
    allow_many_connections,
    announce,
    begin_peer_numbers_anywhere,
    run_process,
    settings_from_arguments,
    stop_asked,
)
from fedsea_mq.settings import Settings
from fedsea_mq.telemetry.endpoint import MetricsEndpoint


async def serve(settings: Settings) -> None:
    """Serve until asked to stop."""
    async with (
        Broker(settings.broker, settings.security, telemetry=settings.telemetry) as broker,
        MetricsEndpoint(settings.metrics, broker.metrics.registry) as shown,
    ):
        announce(ready="broker", clients=broker.clients, nodes=broker.nodes, metrics=shown.url)
        await stop_asked()


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq broker", arguments)
    allow_many_connections()
    begin_peer_numbers_anywhere()
    return run_process(serve(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
