"""`fedsea status`: nodes, sessions and rates, as the broker knows them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedsea_mq.cli.output import console, print_json
from fedsea_mq.protocol.messages import NodeStatus, StatusReport
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch


async def status(settings: Settings, *, as_json: bool, once: bool) -> None:
    """Print the broker's report once, or keep a live view of it until Ctrl-C."""
    async with StatusWatch(settings.broker, settings.security) as watch:
        report = await watch.report()
        if as_json:
            print_json(asdict(report))
            return
        if once:
            console.print(view(report))
            return
        with Live(view(report), console=console, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(settings.broker.heartbeat_ms / 1000)
                live.update(view(await watch.report()), refresh=True)


def view(report: StatusReport) -> Group:
    """The report for people; two tables, so that names stand whole in 80 columns."""
    what = _table("node", "role", "run", "cut", "model")
    load = _table("node", "sessions", "direct", "KV free", "tokens/s", "batch", "busy", "RSS")
    for node in report.nodes:
        now = node.load
        what.add_row(
            node.name,
            node.role.value,
            node.run or "",
            _cut(node),
            node.fingerprint[:12],
        )
        load.add_row(
            node.name,
            str(now.sessions),
            str(now.direct_sessions),
            f"{now.kv_positions_free / max(1, now.kv_positions_total):.0%}",
            f"{now.positions_per_s:.1f}",
            f"{now.mean_batch:.1f}",
            f"{now.busy_share:.0%}",
            f"{now.peak_rss_bytes >> 20} MB",
        )
    said = (
        f"up {report.uptime_s:.0f} s; {len(report.nodes)} nodes; {report.sessions} sessions, "
        f"{report.waiting} waiting; "
        f"{report.frames_relayed} frames and {report.bytes_relayed / 1e6:.1f} MB relayed; "
        f"{report.errors} errors"
    )
    return Group(what, load, Text(said, style="dim"))


def _cut(node: NodeStatus) -> str:
    """The blocks that clients keep, and of the others those that a stage has."""
    cut, stage = f"{node.head_blocks}+{node.tail_blocks}", node.stage
    return cut if stage is None or stage.is_whole else f"{stage} of {cut}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
