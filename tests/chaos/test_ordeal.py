"""The command's own faults in processes: a few of them, and that it counts what it should."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from fedsea_mq.cli.chaos.live.faults import FaultKind, shuffled_kinds
from fedsea_mq.cli.chaos.live.ordeal import DEFAULTS, Scale, endure
from fedsea_mq.settings import Settings


async def test_a_few_faults_cost_no_token_and_leak_nothing(tiny_llama: Path) -> None:
    settings = Settings.load(None, [f"model.path={tiny_llama}"], DEFAULTS)
    async with asyncio.timeout(120):
        scale = Scale(faults=4, trunks=2, clients=1, lanes_a_client=6)
        done = await endure(settings, scale, Random(3))
    told = done.as_json()
    assert done.held, told
    assert told["injected"] == 4
    assert told["generations"] > 6
    assert told["recovery_max_s"] < 10


def test_every_kind_comes_in_turn() -> None:
    kinds = shuffled_kinds(Random(1))
    for _ in range(3):
        assert {next(kinds) for _ in FaultKind} == set(FaultKind)
