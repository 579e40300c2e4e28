"""`fedsea status` as a person sees it."""

from __future__ import annotations

from rich.console import Console

from fedsea_mq.cli.watch import view
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.protocol.messages import Load, NodeStatus, StatusReport
from fedsea_mq.protocol.stage import Stage


def seen(report: StatusReport) -> str:
    console = Console(width=80, record=True)
    console.print(view(report))
    return console.export_text()


def test_names_stand_whole_in_80_columns() -> None:
    names = ["trunk-of-the-lab-00", "trunk-of-the-lab-01", "aggregator-of-the-lab"]
    load = Load(
        kv_positions_free=262_143,
        kv_positions_total=262_144,
        sessions=1000,
        sessions_free=24,
        direct_sessions=1000,
        positions_per_s=123_456.7,
        mean_batch=999.9,
        busy_share=1.0,
        peak_rss_bytes=12_345 << 20,
    )
    nodes = [
        NodeStatus(
            name=name,
            fingerprint="0123456789abcdef" * 4,
            head_blocks=10,
            tail_blocks=10,
            silent_ms=0,
            load=load,
            role=Role.AGGREGATOR,
            run="run-of-the-hospitals",
        )
        for name in names
    ]
    report = StatusReport(
        uptime_s=1.0, sessions=1, frames_relayed=2, bytes_relayed=3, errors=0, nodes=nodes
    )
    shown = seen(report)
    for word in (*names, "run-of-the-hospitals", "0123456789ab", "123456.7", "12345 MB", "10+10"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_stage_says_which_blocks_it_has_and_a_whole_trunk_does_not() -> None:
    load = Load(kv_positions_free=1, kv_positions_total=1, sessions=0, sessions_free=1)
    stages = {"front": Stage(1, 4, 1, 7), "back": Stage(4, 7, 1, 7), "all": Stage(1, 7, 1, 7)}
    nodes = [
        NodeStatus(name, "ab" * 32, 1, 2, 0, load, stage=stage) for name, stage in stages.items()
    ]
    shown = seen(StatusReport(1.0, 0, 0, 0, 0, nodes))
    for line in ("1-3 of 1+2", "4-6 of 1+2"):
        assert line in shown
    assert "1-6" not in shown
