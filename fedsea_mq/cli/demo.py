"""`fedsea demo`: a whole private system on this machine, with text streaming from three clients."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from fedsea_mq.cli.output import console, print_json, progress_console
from fedsea_mq.cli.processes import Child, LocalSystem
from fedsea_mq.errors import ProcessFailed
from fedsea_mq.model.chat import Message
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.dialogues import Kind, dialogues

_SEED = 7
_KINDS = (Kind.SUMMARY, Kind.CONVERSATION, Kind.REPEAT)
_REPORTED = ("new_tokens", "ttft_ms", "tpot_ms", "bytes_up_per_token", "bytes_down_per_token")


@dataclass(slots=True)
class Asked:
    """One client of the demo: what it asks, and what has come back."""

    child: Child
    messages: list[Message]
    text: str = ""
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """What the user typed."""
        return self.messages[-1]["content"]

    def as_json(self) -> dict[str, Any]:
        """The client's entry of the JSON report."""
        return {
            "prompt": self.prompt,
            "text": self.report["text"],
            **{key: self.report[key] for key in _REPORTED},
            "sigma": round(self.child.ready["sigma"], 6),
            "sigma_over_head_rms": round(
                self.child.ready["sigma"] / self.child.ready["head_rms"], 4
            ),
            "node": self.report["node"],
        }


async def demo(settings: Settings, *, as_json: bool) -> None:
    """Start broker, trunk nodes and clients as processes; ask; show; stop everything."""
    progress_console.print("starting a broker, trunk nodes and three clients ...", style="dim")
    async with LocalSystem(settings) as system:
        asked = [
            Asked(await system.start_client(f"client-{number}"), _question(task))
            for number, task in enumerate(_KINDS)
        ]
        await asyncio.gather(*(one.child.wait_ready() for one in asked))
        await _ask_all(asked, live=not as_json)
        nodes = [trunk.ready["node"] for trunk in system.trunks]
    if as_json:
        print_json({"nodes": nodes, "clients": [one.as_json() for one in asked]})
    else:
        _explain(settings, nodes)


def _question(kind: Kind) -> list[Message]:
    # A world of its own for each client: they are strangers to each other.
    return next(dialogues(kind, _SEED + list(_KINDS).index(kind), 1)).prompt(0).messages()


async def _ask_all(asked: list[Asked], *, live: bool) -> None:
    if not live or not console.is_terminal:
        await asyncio.gather(*(_ask(one, lambda: None) for one in asked))
        if live:
            console.print(_panels(asked))
        return
    with Live(_panels(asked), console=console, refresh_per_second=20) as view:
        await asyncio.gather(*(_ask(one, lambda: view.update(_panels(asked))) for one in asked))


async def _ask(one: Asked, changed: Any) -> None:
    one.child.ask({"id": "demo", "messages": one.messages})
    while not one.report:
        line = await one.child.line()
        if "error" in line:
            raise ProcessFailed(f"{one.child.name}: {line['error']}: {line['message']}")
        one.text += line.get("text", "")
        one.report = line.get("done", {})
        changed()


def _panels(asked: list[Asked]) -> Group:
    return Group(*(_panel(one) for one in asked))


def _panel(one: Asked) -> Panel:
    report = one.report
    cost = (
        f"first token {report['ttft_ms']:.0f} ms, then {report['tpot_ms']:.1f} ms a token; "
        f"{report['bytes_up_per_token']:.0f} bytes up and {report['bytes_down_per_token']:.0f} "
        f"down a token; noise sigma {one.child.ready['sigma']:.3f} "
        f"({one.child.ready['sigma'] / one.child.ready['head_rms']:.2f} of the states' RMS); "
        f"trunk node {report['node']}"
        if report
        else "..."
    )
    body = Text.assemble(
        (one.prompt, "dim"), "\n\n", (one.text or " ", "bold"), "\n\n", (cost, "dim italic")
    )
    return Panel(body, title=one.child.name, title_align="left", expand=True)


def _explain(settings: Settings, nodes: list[str]) -> None:
    model = settings.model
    console.print(
        f"Each client is a process with the first {model.head_blocks} and last "
        f"{model.tail_blocks} blocks of the model and the text above. {len(nodes)} trunk nodes "
        f"({', '.join(nodes)}) have the blocks between, and were sent noised hidden states only.\n"
        "Noise is not encryption: docs/privacy.md says what it does and does not hide.",
        style="dim",
    )
