"""The `fedsea` command: its commands in one, and what it says when one fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Final

import typer

from fedsea_mq import __version__
from fedsea_mq.cli.adapters import adapters
from fedsea_mq.cli.audit.command import audit
from fedsea_mq.cli.bench.command import bench
from fedsea_mq.cli.chaos.command import chaos
from fedsea_mq.cli.commands.asking import chat, generate, health, status
from fedsea_mq.cli.commands.measuring import evaluate, loadtest, soak, sweep
from fedsea_mq.cli.commands.processes import aggregator, broker, demo, gateway, trainer, trunk, up
from fedsea_mq.cli.commands.samples import configs
from fedsea_mq.cli.commands.training import train
from fedsea_mq.cli.commands.weights import pretrain, shard, verify
from fedsea_mq.cli.keys import keygen, trust
from fedsea_mq.cli.output import console, progress_console
from fedsea_mq.cli.plan.command import plan
from fedsea_mq.entry import leaves
from fedsea_mq.errors import ConfigError, FedSeaError, PeerUnreachable

app = typer.Typer(
    name="fedsea",
    help="Private split-LLM inference: the text stays here, a shared trunk does the work.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # else each line of a docstring is one of the help
)
app.add_typer(bench, name="bench")
app.add_typer(adapters, name="adapters")
app.add_typer(plan, name="plan")
app.add_typer(trust, name="trust")
# In the order of the help.
COMMANDS: Final[tuple[Callable[..., None], ...]] = (
    *(demo, up, broker, trunk, aggregator, trainer, train, gateway, generate, chat),
    *(status, health),
    *(shard, pretrain, verify, loadtest, soak, evaluate, sweep, audit, chaos, keygen),
    configs,
)
for command in COMMANDS:
    app.command(name="eval" if command is evaluate else None)(command)


def _version(asked: bool) -> None:
    if asked:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `fedsea` command: errors in one line, exit status 2 for bad settings."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (FedSeaError, BaseExceptionGroup) as error:
        if not all(isinstance(leaf, FedSeaError) for leaf in leaves(error)):
            raise
        said = {f"{type(leaf).__name__}: {leaf}" for leaf in leaves(error)}
        # Not cut to the width of a terminal that may not be there: paths stay whole.
        progress_console.print("\n".join(sorted(said)), style="red", markup=False, soft_wrap=True)
        if any(isinstance(leaf, PeerUnreachable) for leaf in leaves(error)):
            progress_console.print(
                "Is the system up, with keys on both sides or on none? "
                "`fedsea up` starts one on this machine.",
                soft_wrap=True,
            )
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
