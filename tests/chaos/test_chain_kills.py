"""Stages of a chain, killed in the middle of prompts and answers: the tokens are the same."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Final, Literal

import pytest

from fedsea_mq.cli.processes import Child, LocalSystem
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.transport.status import StatusWatch
from nodes import ClientNode, TrunkNode
from tests.chaos.test_faults import processes, until_no_sessions
from tests.conftest import MakeModel

Phase = Literal["prefill", "decode"]
PROMPT: Final = [(7 * n) % 290 for n in range(80)]
SAMPLING: Final = SamplingSettings(max_new_tokens=40, ignore_eos=True, temperature=1.0, seed=3)
# A frame a position: a prompt is as many round trips as an answer of its length.
FRAMES: Final = "trunk.max_frame_positions=1"
# The spare nodes live in this process, beside the client: a busy machine is no reason to take one
# for dead, whose sessions would then stay until their lease is over.
PATIENT: Final = "broker.timeout_ms=2000"
# In the middle of either.
_TRIPS: Final[dict[Phase, int]] = {"prefill": 30, "decode": len(PROMPT) + 15}


async def generate(client: ClientNode) -> list[int]:
    return (await client.generate(PROMPT, SAMPLING).complete()).tokens


def number_of(child: Child) -> int:
    return int(child.name.rpartition("-")[2])


async def holder(system: LocalSystem, stage: int) -> Child:
    """The process of this stage, from 0, that holds a session."""
    stages = system.settings.trunk.stages
    async with StatusWatch(system.settings.broker) as watch, asyncio.timeout(10):
        while True:
            busy = {n.name for n in (await watch.report()).nodes if n.load.sessions}
            for child in system.trunks:
                here = child.name in busy and child.running
                if here and number_of(child) % stages == stage:
                    return child
            await asyncio.sleep(0.05)


async def killed_in(system: LocalSystem, client: ClientNode, stage: int, phase: Phase) -> list[int]:
    """The tokens of a generation whose stage is killed while it is under way."""
    generation = client.generate(PROMPT, SAMPLING)
    completing = asyncio.create_task(generation.complete())
    while generation.stats.traffic.round_trips < _TRIPS[phase]:
        assert not completing.done()
        await asyncio.sleep(0.001)
    child = await holder(system, stage)
    child.process.send_signal(signal.SIGKILL)
    assert not completing.done()
    return (await completing).tokens


async def test_a_killed_stage_of_a_chain_is_replaced_without_a_wrong_token(
    make_model: MakeModel,
) -> None:
    model = make_model("llama")
    async with (
        processes(model, "trunk.stages=2", FRAMES, PATIENT) as system,
        AsyncExitStack() as stack,
        ClientNode(system.settings) as client,
    ):
        undisturbed = await generate(client)
        # Given a node more of each stage, with less room, so that it is not the first choice.
        for blocks in ("1/2", "2/2"):
            said = {"blocks": blocks, "stages": 1, "kv_memory_mb": 1}
            spare = TrunkNode(system.settings.replace(trunk=said))
            await (await stack.enter_async_context(spare)).registered()
        # When one after the other is killed, then nobody is told anything but the same tokens.
        assert await killed_in(system, client, 0, "prefill") == undisturbed
        assert await killed_in(system, client, 1, "decode") == undisturbed
        await until_no_sessions(system, 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_each_of_three_stages_is_killed_and_started_again(
    make_model: MakeModel, phase: Phase
) -> None:
    model = make_model("llama", num_hidden_layers=6)
    async with (
        processes(model, "trunk.nodes=2", "trunk.stages=3", FRAMES) as system,
        ClientNode(system.settings) as client,
    ):
        undisturbed = await generate(client)
        for stage in range(3):
            assert await killed_in(system, client, stage, phase) == undisturbed, stage
            (dead,) = [child for child in system.trunks if not child.running]
            system.trunks.remove(dead)
            await (await system.start_trunk(number_of(dead))).wait_ready()
        await until_no_sessions(system, 10)
