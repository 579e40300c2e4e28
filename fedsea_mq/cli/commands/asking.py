"""The commands that ask a running system."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from fedsea_mq.cli import options
from fedsea_mq.cli.output import console
from fedsea_mq.errors import ConfigError
from fedsea_mq.settings import Settings, explain


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue, or `-` for standard input.")],
    config: options.Config = None,
    set_: options.Overrides = None,
    as_json: options.AsJson = False,
    as_chat: Annotated[bool, typer.Option("--chat", help="Ask as a chat message.")] = False,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    adapter: options.Adapter = None,
) -> None:
    """Continue a text on a running system; tokens appear as they come."""
    from fedsea_mq.cli.talk import generate as run

    text = sys.stdin.read() if prompt == "-" else prompt
    sampling = _sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    settings = options.with_adapter(options.quiet(config, set_), adapter)
    asyncio.run(run(settings, text, sampling, as_chat=as_chat, as_json=as_json))


def chat(
    config: options.Config = None,
    set_: options.Overrides = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    adapter: options.Adapter = None,
) -> None:
    """Talk with the model on a running system."""
    from fedsea_mq.cli.talk import chat as run

    sampling = _sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    asyncio.run(run(options.with_adapter(options.quiet(config, set_), adapter), sampling))


def status(
    config: options.Config = None,
    set_: options.Overrides = None,
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show nodes, sessions and tokens/s, live until Ctrl-C."""
    from fedsea_mq.cli.watch import status as run

    asyncio.run(run(Settings.load(config, set_ or []), as_json=as_json, once=once))


def health(
    trunks: Annotated[int, typer.Option(min=0, help="Nodes that must take sessions.")] = 1,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="A node that must be registered.")
    ] = None,
    config: options.Config = None,
    set_: options.Overrides = None,
) -> None:
    """Exit 0 if the broker answers and enough trunk nodes take sessions, else 1 and say why.

    `--trunks 0` asks whether the broker lives, with `--node` whether a node does. A broker that
    does not answer is waited for 5 s.
    """
    from fedsea_mq.cli.health import health as run
    from fedsea_mq.entry import configure_logging

    settings = Settings.load(config, set_ or [], ["log.level=error"])
    configure_logging(settings.log)
    console.print(asyncio.run(run(settings, trunks, node)), soft_wrap=True)


def _sampling(**fields: Any) -> Any:
    from fedsea_mq.model.sampling import SamplingSettings

    try:
        return SamplingSettings(**fields)
    except ValidationError as error:
        raise ConfigError(explain(error, as_options=True)) from None
