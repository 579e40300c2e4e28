"""`python -m nodes.trunk --config FILE`: a trunk node until SIGTERM, which drains it.

With `trunk.rank` above 0 it is that rank of a node, as `python -m nodes.trunk.rank`.
"""

from __future__ import annotations

import sys

import torch

from fedsea_mq.entry import (
    allow_many_connections,
    announce,
    begin_peer_numbers_anywhere,
    ready_unless_asked,
    run_process,
    settings_from_arguments,
    stop_asked,
)
from fedsea_mq.model.attention import compile_attention
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.serving.memory import peak_rss_bytes
from fedsea_mq.settings import Settings
from fedsea_mq.telemetry.endpoint import MetricsEndpoint
from nodes.trunk import rank
from nodes.trunk.node import TrunkNode


async def serve(settings: Settings) -> None:
    """Serve until asked to stop, then let running sessions end."""
    torch.set_num_threads(settings.model.threads)
    # Before any weight, but with the compiler of the attention: it is the same for every model.
    compile_attention(Numerics.of(settings.model).kv)
    baseline = peak_rss_bytes()
    async with (
        TrunkNode(settings) as node,
        MetricsEndpoint(settings.metrics, node.metrics.registry) as shown,
    ):
        if not await ready_unless_asked(node.registered()):
            return
        announce(
            ready="trunk",
            node=node.name,
            fingerprint=node.fingerprint,
            direct=node.direct,
            metrics=shown.url,
            baseline_rss=baseline,
            tensor_bytes=node.tensor_bytes,
            rank_tensor_bytes=list(node.rank_tensor_bytes),
        )
        await stop_asked()
        await node.drain()
    announce(peak_rss=peak_rss_bytes())


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq trunk node", arguments)
    if settings.trunk.rank:
        return rank.main(arguments)
    allow_many_connections()
    begin_peer_numbers_anywhere()
    return run_process(serve(settings), settings)


if __name__ == "__main__":
    sys.exit(main())
