"""Real processes, really killed: the tokens are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq

from fedsea_mq.cli.processes import Child, LocalSystem
from fedsea_mq.entry import PARENT
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from fedsea_mq.transport.status import StatusWatch
from nodes import ClientNode

PROMPT = [7, 3, 11, 19, 2, 5]
SAMPLING = SamplingSettings(max_new_tokens=60, ignore_eos=True, temperature=1.0, seed=3)
FAST = [
    "broker.heartbeat_ms=100",
    "broker.timeout_ms=600",
    "client.request_timeout_s=0.5",
    "client.give_up_s=60",
    "noise.mode=off",
    "client.wire_dtype=fp32",
    "log.level=warning",
]


@asynccontextmanager
async def processes(model: Path, *overrides: str) -> AsyncIterator[LocalSystem]:
    settings = Settings.load(None, [*FAST, f"model.path={model}", *overrides])
    async with LocalSystem(settings) as system:
        yield system


class Pause:
    """Stops a generation after `at` tokens, until the fault has been done."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.node = ""
        self.reached = asyncio.Event()
        self.over = asyncio.Event()


async def generate(client: ClientNode, pause: Pause | None = None) -> tuple[list[int], int]:
    """All tokens and the recoveries."""
    generation = client.generate(PROMPT, SAMPLING)
    tokens: list[int] = []
    async for token in generation:
        tokens.append(token.id)
        if pause is not None and len(tokens) == pause.at:
            pause.node = generation.stats.node
            pause.reached.set()
            await pause.over.wait()
    return tokens, generation.stats.recoveries


async def sessions_on(system: LocalSystem) -> int:
    async with StatusWatch(system.settings.broker) as watch:
        return sum(node.load.sessions for node in (await watch.report()).nodes)


async def until_no_sessions(system: LocalSystem, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while await sessions_on(system):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
async def test_a_trunk_that_goes_is_replaced_without_a_wrong_token(
    tiny_llama: Path, how: signal.Signals
) -> None:
    async with (
        processes(tiny_llama, "trunk.nodes=2", "trunk.drain_s=0") as system,
        ClientNode(system.settings) as client,
    ):
        undisturbed, _ = await generate(client)
        pause = Pause(at=20)
        running = asyncio.create_task(generate(client, pause))
        await pause.reached.wait()
        holder = next(t for t in system.trunks if t.ready["node"] == pause.node)
        holder.process.send_signal(how)
        assert await holder.process.wait() == (0 if how is signal.SIGTERM else -how)
        pause.over.set()
        tokens, recoveries = await running
    assert tokens == undisturbed
    assert recoveries >= 1


async def test_a_broker_killed_and_restarted_is_only_a_pause(
    tiny_llama: Path, tmp_path: Path
) -> None:
    async with processes(tiny_llama) as system, ClientNode(system.settings) as client:
        undisturbed, _ = await generate(client)
        pause = Pause(at=20)
        running = asyncio.create_task(generate(client, pause))
        await pause.reached.wait()
        system.broker.process.kill()
        await system.broker.process.wait()
        again = await Child.start("broker", "broker-again", system.settings, tmp_path)
        try:
            pause.over.set()
            await again.wait_ready()
            tokens, _ = await running
            await until_no_sessions(system, 10)
        finally:
            await again.stop()
    assert tokens == undisturbed


async def test_peers_that_claim_the_brokers_own_numbers_do_not_bring_it_down(
    tiny_llama: Path,
) -> None:
    """libzmq 4.3 aborts when a number comes up that a peer has claimed, here all that would be next
    if the broker did not begin its numbers at a secret one.
    """
    async with processes(tiny_llama) as system:
        endpoints = (system.settings.broker.clients, system.settings.broker.nodes)
        with zmq.Context() as context:
            claims = [
                _claim(context, endpoint, start + ahead)
                for endpoint in endpoints
                for start in (0x6B8B4567, 0xE43C9869)
                for ahead in range(8)
            ]
            await asyncio.sleep(0.3)
            for _ in range(12):
                async with ClientNode(system.settings) as client:
                    one = SamplingSettings(max_new_tokens=1, ignore_eos=True)
                    assert len((await client.generate(PROMPT, one).complete()).tokens) == 1
            assert system.broker.running
            for claim in claims:
                claim.close()


def _claim(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, number: int
) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.ROUTING_ID, b"\0" + number.to_bytes(4, "big"))
    socket.connect(endpoint)
    return socket


async def begin_long_generation(system: LocalSystem, client: Child) -> None:
    """Returns once the broker has heard of the client's session."""
    await client.wait_ready()
    sampling = {"max_new_tokens": 400, "ignore_eos": True}
    client.ask({"id": "x", "tokens": PROMPT, "sampling": sampling})
    async with asyncio.timeout(10):
        while not await sessions_on(system):
            await asyncio.sleep(0.05)


async def test_a_client_that_vanishes_leaves_no_kv_behind(tiny_llama: Path) -> None:
    async with processes(tiny_llama, "trunk.lease_s=20") as system:
        client = await system.start_client("doomed")
        await begin_long_generation(system, client)
        assert client.process.pid is not None
        os.kill(client.process.pid, signal.SIGKILL)
        # Long before the lease runs out: the broker sees that the reply has nobody to go to.
        await until_no_sessions(system, 8)


async def test_a_frozen_client_is_let_go_when_its_lease_runs_out(tiny_llama: Path) -> None:
    async with processes(tiny_llama, "trunk.lease_s=1") as system:
        client = await system.start_client("frozen")
        await begin_long_generation(system, client)
        client.process.send_signal(signal.SIGSTOP)
        try:
            await until_no_sessions(system, 8)
        finally:
            client.process.send_signal(signal.SIGCONT)


async def test_a_killed_command_leaves_no_process_behind(tiny_llama: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, sys\n"
        "from fedsea_mq.cli.processes import LocalSystem\n"
        "from fedsea_mq.settings import Settings\n"
        "async def main():\n"
        "    async with LocalSystem(Settings.load(None, sys.argv[1:])) as system:\n"
        "        print(*(c.process.pid for c in (system.broker, *system.trunks)), flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n",
        f"model.path={tiny_llama}",
        "log.level=error",
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    children = [int(pid) for pid in (await parent.stdout.readline()).split()]
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(10):
        while any(_alive(pid) for pid in children):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("module", "port"), [("broker", "*"), ("nodes.trunk", "1"), ("nodes.aggregator", "1")]
)
async def test_a_process_whose_parent_was_gone_before_it_looked_ends(
    module: str, port: str, tmp_path: Path
) -> None:
    """A node, too, that waits for a broker which is not there."""
    endpoint = f"tcp://127.0.0.1:{port}"
    orphan = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        *("--set", f"broker.clients={endpoint}", "--set", f"broker.nodes={endpoint}"),
        *("--set", "training.run=orphaned", "--set", f"training.out={tmp_path}"),
        env=os.environ | {PARENT: "0"},  # the id of no process
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(40):
        assert await orphan.wait() == 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed child of ours may linger as a zombie until init reaps it.
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
