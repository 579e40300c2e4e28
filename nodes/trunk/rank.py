"""`python -m nodes.trunk.rank --config FILE`: rank 1 or up of a trunk node, until rank 0 ends it.

It has no sockets but those to the other ranks, knows no session, and does nothing of its own
accord. So the process has no event loop: it waits for rank 0, computes, and waits again.
"""

from __future__ import annotations

import signal
import sys

import torch

from fedsea_mq.entry import announce, configure_logging, settings_from_arguments
from fedsea_mq.errors import ConfigError, FedSeaError
from fedsea_mq.model.attention import compile_attention
from fedsea_mq.model.numerics import Numerics
from fedsea_mq.model.parts import weight_bytes
from fedsea_mq.serving.memory import peak_rss_bytes
from fedsea_mq.settings import Settings
from fedsea_mq.tensor_parallel.rank_group import RankGroup
from fedsea_mq.tensor_parallel.rendezvous import find, introduce
from fedsea_mq.tensor_parallel.shared_run import follow
from nodes.trunk.engine import introduction, load, shard_of


def serve(settings: Settings) -> None:
    """Load this rank's share, then compute what rank 0 says.

    Raises:
        ConfigError: settings of rank 0, which is a node.
        RankLost, RankMismatch: as the ranks find each other, and lose each other.
        FedSeaError: what cannot be loaded, as `nodes.trunk.engine.load` says.
    """
    rendezvous = settings.trunk.rendezvous
    if settings.trunk.rank == 0 or rendezvous is None:
        raise ConfigError("trunk.rank 0 is the node itself: start it with nodes.trunk")
    torch.set_num_threads(settings.model.threads)
    compile_attention(Numerics.of(settings.model).kv)
    baseline = peak_rss_bytes()
    store, address = find(rendezvous)
    shard, loaded = shard_of(settings), load(settings)
    introduce(store, shard, introduction(settings, loaded))
    device, patience_s = loaded.run.kv_shape.device, settings.trunk.step_timeout_s
    group = RankGroup.connect(store, shard, address, device, patience_s)
    announce(
        ready="rank",
        rank=shard.rank,
        baseline_rss=baseline,
        tensor_bytes=weight_bytes(loaded.run),
    )
    try:
        follow(loaded.run, group, loaded.offer.hidden, loaded.offer.adapter_names)
    finally:
        group.close()
    announce(peak_rss=peak_rss_bytes())


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    settings = settings_from_arguments("fedsea_mq trunk rank", arguments)
    configure_logging(settings.log)
    # Python would see Ctrl-C only after the call that waits for rank 0.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        serve(settings)
    except FedSeaError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
