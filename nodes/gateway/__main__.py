"""`python -m nodes.gateway --config FILE`: OpenAI's API in front of a client node until SIGTERM."""

from __future__ import annotations

import sys

import torch

from fedsea_mq.entry import (
    allow_many_connections,
    announce,
    run_process,
    settings_from_arguments,
    stop_asked,
)
from fedsea_mq.model.attention import compile_attention
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.settings import Settings
from fedsea_mq.telemetry.endpoint import MetricsEndpoint


async def serve(settings: Settings) -> None:
    """Serve until asked to stop, then let running answers end."""
    from nodes.gateway import GatewayNode  # an extra, without which this says so in a line

    torch.set_num_threads(settings.model.threads)
    compile_attention(Numerics.of(settings.model).kv)
    async with (
        GatewayNode(settings) as gateway,
        MetricsEndpoint(settings.metrics, gateway.client.metrics.registry) as shown,
    ):
        announce(ready="gateway", url=gateway.url, models=gateway.models, metrics=shown.url)
        await stop_asked()


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq gateway", arguments)
    allow_many_connections()
    return run_process(serve(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
