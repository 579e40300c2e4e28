"""The commands that are processes, or start them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fedsea_mq.cli import options
from fedsea_mq.cli.places import Place, system_on
from fedsea_mq.settings import Settings


def demo(
    config: options.Config = None, set_: options.Overrides = None, as_json: options.AsJson = False
) -> None:
    """Start a broker, two trunk nodes and three clients, and stream their answers."""
    from fedsea_mq.cli.demo import demo as run

    settings = Settings.load(config, set_ or [], ["trunk.nodes=2", "log.level=warning"])
    asyncio.run(run(settings, as_json=as_json))


def up(
    config: options.Config = None,
    set_: options.Overrides = None,
    on: options.On = Place.LOCAL,
    address: options.RayAddress = None,
) -> None:
    """Start a broker and its trunk nodes from one configuration file, until Ctrl-C.

    On Ray, trunk nodes are spread over a cluster, replaced when they are lost, and as many as the
    sessions need.
    """
    settings = options.on_cluster(Settings.load(config, set_ or []), address)
    system_on(on)  # says what is missing, if anything is
    if on is Place.RAY:
        from fedsea_mq.cli.ray.up import up as run
    else:
        from fedsea_mq.cli.serve import up as run
    asyncio.run(run(settings))


def broker(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Run a broker in this process. The same as `python -m broker`."""
    from broker.__main__ import main as run

    sys.exit(run(_arguments(config, set_)))


def trunk(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Run a trunk node in this process. The same as `python -m nodes.trunk`."""
    from nodes.trunk.__main__ import main as run

    sys.exit(run(_arguments(config, set_)))


def aggregator(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Run the aggregator of a training run in this process. As `python -m nodes.aggregator`."""
    from nodes.aggregator.__main__ import main as run

    sys.exit(run(_arguments(config, set_)))


def trainer(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Run one client of a training run in this process. The same as `python -m nodes.trainer`."""
    from nodes.trainer.__main__ import main as run

    sys.exit(run(_arguments(config, set_)))


def gateway(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Serve OpenAI's HTTP API from a client node in this process. As `python -m nodes.gateway`."""
    from nodes.gateway.__main__ import main as run

    sys.exit(run(_arguments(config, set_)))


def _arguments(config: Path | None, overrides: list[str] | None) -> list[str]:
    arguments = ["--config", str(config)] if config is not None else []
    for override in overrides or []:
        arguments += ["--set", override]
    return arguments
