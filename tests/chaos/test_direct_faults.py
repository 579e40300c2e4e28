"""Real processes whose states do not pass the broker, really killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fedsea_mq.cli.processes import Child
from nodes import ClientNode
from tests.chaos.test_faults import Pause, generate, processes, until_no_sessions

DIRECT = ["trunk.direct=tcp://127.0.0.1:*", "client.direct=true"]


async def test_a_killed_trunk_costs_no_token_and_a_killed_broker_not_even_a_pause(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with (
        processes(tiny_llama, "trunk.nodes=2", "trunk.lease_s=2", *DIRECT) as system,
        ClientNode(system.settings) as client,
    ):
        undisturbed, _ = await generate(client)
        pause = Pause(at=20)
        running = asyncio.create_task(generate(client, pause))
        await pause.reached.wait()
        holder = next(t for t in system.trunks if t.ready["node"] == pause.node)
        holder.process.kill()
        await holder.process.wait()
        pause.over.set()
        tokens, recoveries = await running
        assert tokens == undisturbed
        assert recoveries >= 1

        pause = Pause(at=20)
        running = asyncio.create_task(generate(client, pause))
        await pause.reached.wait()
        system.broker.process.kill()
        await system.broker.process.wait()
        pause.over.set()
        assert await running == (undisturbed, 0)  # there is no broker at all now
        again = await Child.start("broker", "broker-again", system.settings, tmp_path)
        try:
            await again.wait_ready()
            assert await generate(client) == (undisturbed, 0)
            await until_no_sessions(system, 10)
        finally:
            await again.stop()
