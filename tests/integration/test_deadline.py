"""What a client does not wait for any more, the trunk does not compute."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fedsea_mq.errors import DeadlineExceeded, PeerUnreachable, RemoteError
from fedsea_mq.model.attention import Span
from fedsea_mq.model.sampling import SamplingSettings
from nodes import ClientNode, TrunkNode
from nodes.trunk.engine import TrunkEngine
from tests.integration.systems import running

PROMPT = [1, 2, 3]
LONG = [4] * 11


class Held(TrunkEngine):
    """Its steps wait while `free` is not set; `computed` is what they were of, a count a span."""

    def __init__(self, *of: object) -> None:
        super().__init__(*of)  # type: ignore[arg-type]
        self.free = threading.Event()
        self.holds = threading.Event()
        self.computed: list[int] = []

    def run_blocks(self, states: torch.Tensor, spans: Sequence[Span]) -> Sequence[torch.Tensor]:
        self.holds.set()
        self.free.wait()
        self.computed += [span.count for span in spans]
        return super().run_blocks(states, spans)


async def test_work_that_nobody_waits_for_is_not_computed(tiny_llama: Path) -> None:
    async with running(tiny_llama, trunks=0) as system:
        engine = Held(system.settings, "held")
        hasty = system.settings.replace(client={"give_up_s": 0.3, "request_timeout_s": 0.2})
        async with TrunkNode(system.settings, engine) as node, ClientNode(hasty) as client:
            await node.registered()
            first = asyncio.create_task(
                system.client.generate(PROMPT, SamplingSettings(max_new_tokens=2)).complete()
            )
            await asyncio.to_thread(engine.holds.wait)
            async with client.session(len(LONG)) as session:
                with pytest.raises(RemoteError) as given_up:
                    await session.advance(LONG, lambda logits: logits)
                # Whichever comes first: the trunk's word, or the client's own patience.
                assert given_up.type in {DeadlineExceeded, PeerUnreachable}
                await asyncio.sleep(0.3)
                engine.free.set()
                assert len((await first).tokens) == 2
                assert engine.computed == [len(PROMPT), 1]
                # The session is as it was, and goes on.
                assert session.cached == 0
                await session.advance(LONG, lambda logits: logits)
                assert engine.computed == [len(PROMPT), 1, len(LONG)]
