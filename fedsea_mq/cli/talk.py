"""`fedsea generate` and `fedsea chat`: a client node in this process, tokens as they come."""

from __future__ import annotations

import sys
from typing import Any, Final

import torch

from fedsea_mq.cli.input_lines import InputLines
from fedsea_mq.cli.output import console, print_json, progress_console
from fedsea_mq.entry import configure_logging
from fedsea_mq.errors import LocalError, RemoteError
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from nodes.client import ClientNode, Conversation, Generation, GenerationStats

_COMMANDS: Final = "/again, /new and /quit"


async def generate(
    settings: Settings, prompt: str, sampling: SamplingSettings, *, as_chat: bool, as_json: bool
) -> None:
    """Answer one prompt from a running system."""
    configure_logging(settings.log)
    torch.set_num_threads(settings.model.threads)
    async with ClientNode(settings) as client:
        generation = (
            client.chat([{"role": "user", "content": prompt}], sampling)
            if as_chat
            else client.generate(prompt, sampling)
        )
        text = await _stream(generation, show=not as_json)
        if as_json:
            print_json(_report(client, generation, text))
        else:
            progress_console.print(_cost(client, generation), style="dim")


async def chat(settings: Settings, sampling: SamplingSettings) -> None:
    """Talk until /quit or the end of the input; /again answers anew, /new starts over."""
    configure_logging(settings.log)
    torch.set_num_threads(settings.model.threads)
    lines = InputLines()
    async with ClientNode(settings) as client:
        client.check_chats()
        progress_console.print(f"noise sigma {client.noise_std:.4f}; {_COMMANDS}", style="dim")
        talking = True
        while talking:
            async with client.conversation(sampling) as conversation:
                talking = await _converse(client, conversation, lines)


async def _converse(client: ClientNode, conversation: Conversation, lines: InputLines) -> bool:
    """One conversation; whether another one is wanted."""
    while (said := await _line(lines)) is not None and said != "/quit":
        if said == "/new":
            progress_console.print("a new conversation", style="dim")
            return True
        if not said:
            continue
        if said.startswith("/") and (said != "/again" or not conversation.messages):
            wrong = "nothing was asked yet" if said == "/again" else "unknown command"
            progress_console.print(f"{wrong}; {_COMMANDS}", style="dim")
            continue
        generation = conversation.regenerate() if said == "/again" else conversation.say(said)
        try:
            await _stream(generation, show=True)
        except (RemoteError, LocalError) as error:
            progress_console.print(f"{type(error).__name__}: {error}", style="red")
            continue
        progress_console.print(_cost(client, generation), style="dim")
    return False


async def _line(lines: InputLines) -> str | None:
    """A line the user typed; None at the end of the input."""
    if sys.stdin.isatty():
        console.print("> ", end="", style="bold")
    line = await lines.next()
    # A pasted passage may hold its line breaks as \n.
    return None if line is None else line.strip().replace("\\n", "\n")


async def _stream(generation: Generation, *, show: bool) -> str:
    texts = []
    async for token in generation:
        texts.append(token.text)
        if show:
            sys.stdout.write(token.text)
            sys.stdout.flush()
    if show:
        sys.stdout.write("\n")
    return "".join(texts)


def _report(client: ClientNode, generation: Generation, text: str) -> dict[str, Any]:
    stats = generation.stats
    up, down = stats.bytes_per_token
    return {
        "text": text,
        "finish": generation.finish,
        "prompt_tokens": stats.prompt_tokens,
        "new_tokens": stats.new_tokens,
        "ttft_ms": round(stats.ttft_ms, 2),
        "tpot_ms": round(stats.tpot_ms, 2),
        "sigma": client.noise_std,
        "bytes_up_per_token": round(up, 1),
        "bytes_down_per_token": round(down, 1),
        "node": stats.node,
        "direct_share": round(stats.direct_share, 3),
        "guesses_sent": stats.drafted,
        "guesses_held": stats.accepted,
    }


def _guesses(stats: GenerationStats) -> str:
    return f"{stats.accepted} of {stats.drafted} guesses held; " if stats.drafted else ""


def _cost(client: ClientNode, generation: Generation) -> str:
    stats = generation.stats
    up, down = stats.bytes_per_token
    return (
        f"[{stats.new_tokens} tokens; first {stats.ttft_ms:.0f} ms, then {stats.tpot_ms:.1f} ms; "
        f"{up:.0f} bytes up and {down:.0f} down a token; "
        f"{_guesses(stats)}sigma {client.noise_std:.4f}; "
        f"{stats.node}{', direct' if stats.direct_share > 0.5 else ''}]"
    ).replace("[", "\\[")
