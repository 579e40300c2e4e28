"""`fedsea health`: whether a broker and its trunk nodes can serve, for whoever restarts them."""

from __future__ import annotations

from collections.abc import Sequence

from broker.chains import entries
from fedsea_mq.errors import NotReady
from fedsea_mq.protocol.messages import NodeStatus, StatusReport
from fedsea_mq.protocol.stage import Stage
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch


async def health(settings: Settings, trunks: int, node: str | None) -> str:
    """What is well, in a line.

    Raises:
        PeerUnreachable, NotTrusted: the broker does not answer, or not this key.
        NotReady: fewer trunk nodes take sessions than that, or the one of this name is not there.
    """
    async with StatusWatch(settings.broker, settings.security) as watch:
        return judged(await watch.report(), settings.broker.timeout_ms, trunks, node)


def judged(report: StatusReport, timeout_ms: int, trunks: int, node: str | None) -> str:
    """The same of a report."""
    alive = [one for one in report.nodes if one.silent_ms <= timeout_ms]
    if node is not None and node not in {one.name for one in alive}:
        raise NotReady(f"no live node is called {node}")
    ready = _ways_in([one for one in alive if one.takes_sessions])
    if ready < trunks:
        raise NotReady(f"{_take_sessions(ready)}, of {trunks} wanted")
    return f"broker up {report.uptime_s:.0f} s, {_take_sessions(ready)}"


def _take_sessions(count: int) -> str:
    return "1 trunk node takes sessions" if count == 1 else f"{count} trunk nodes take sessions"


def _ways_in(nodes: Sequence[NodeStatus]) -> int:
    """Those that sessions can be opened at: of a chain, first stages that lead to the last."""
    stages: dict[str, list[Stage | None]] = {}
    for node in nodes:
        stages.setdefault(node.fingerprint, []).append(node.stage)
    return sum(len(entries(of_one_trunk, None)) for of_one_trunk in stages.values())
