"""A step that does not come back: its node leaves, its sessions move, its process ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fedsea_mq.entry import leaves
from fedsea_mq.errors import StepStuck
from fedsea_mq.model.attention import Span
from fedsea_mq.model.sampling import SamplingSettings
from nodes import TrunkNode
from nodes.trunk.engine import TrunkEngine
from tests.integration.systems import running

PROMPT = [1, 2, 3]
SAMPLING = SamplingSettings(max_new_tokens=20, ignore_eos=True)


class Sticky(TrunkEngine):
    """Its blocks hang while `free` is not set."""

    free = threading.Event()
    hangs = threading.Event()

    def run_blocks(self, states: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        if not self.free.is_set():
            self.hangs.set()
            self.free.wait()
        return super().run_blocks(states, spans)


async def test_the_node_leaves_and_its_sessions_move(tiny_llama: Path) -> None:
    async with running(tiny_llama) as system:
        wanted = await system.client.generate(PROMPT, SAMPLING).complete()
        # Room for more, so that it gets the session.
        sticky = system.settings.replace(
            trunk={"name": "sticky", "step_timeout_s": 0.5, "kv_memory_mb": 2048}
        )
        engine = Sticky(sticky, "sticky")
        registered = asyncio.Event()

        async def node() -> None:
            async with TrunkNode(sticky, engine) as node:
                await node.registered()
                registered.set()
                await asyncio.Event().wait()

        running_node = asyncio.create_task(node())
        try:
            await registered.wait()
            answer = await system.client.generate(PROMPT, SAMPLING).complete()
            assert engine.hangs.is_set()
            with pytest.raises(ExceptionGroup) as ended:
                await running_node
            assert [type(error) for error in leaves(ended.value)] == [StepStuck]
        finally:
            Sticky.free.set()
    assert answer.tokens == wanted.tokens
    assert answer.stats.recoveries == 1


def test_the_process_does_not_wait_for_a_thread_that_is_stuck() -> None:
    script = (
        "import asyncio, sys, time\n"
        "from fedsea_mq.entry import run_process\n"
        "from fedsea_mq.settings import Settings\n"
        "from fedsea_mq.errors import StepStuck\n"
        "from fedsea_mq.serving.compute_thread import compute_thread\n"
        "async def main():\n"
        "    async with compute_thread('stuck', lambda: True) as executor:\n"
        "        asyncio.get_running_loop().run_in_executor(executor, time.sleep, 60)\n"
        "        raise StepStuck('for long')\n"
        "sys.exit(run_process(main(), Settings()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "StepStuck: for long" in done.stderr
