"""What requests to a real system take: seconds of a client in this process, bytes of another."""

from __future__ import annotations

import random
import time
from contextlib import aclosing
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.transport.status import StatusWatch
from nodes import ClientNode
from nodes.client.generation import GenerationStats


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """One request: its time to first token, the median time of a further one, and its traffic."""

    ttft_s: float
    tpot_s: float
    stats: GenerationStats


async def time_tokens(client: ClientNode, prompt: int, new: int) -> TokenTimes:
    """Continue a random prompt greedily, past any end of text. Raises what `generate` raises."""
    ids = random.choices(range(client.model.vocab), k=prompt)  # noqa: S311
    generation = client.generate(ids, _greedy(new))
    async with aclosing(aiter(generation)) as tokens:
        came = [time.perf_counter() async for _ in tokens]
    gaps = [after - before for before, after in pairwise(came)]
    return TokenTimes(generation.stats.ttft_ms / 1000, median(gaps), generation.stats)


def _greedy(new: int) -> SamplingSettings:
    return SamplingSettings(max_new_tokens=new, ignore_eos=True)


async def client_peak_bytes(system: LocalSystem, prompt: int, new: int) -> int:
    """The most that a client process holds that makes one request.

    Raises:
        ProcessFailed: it ended early.
    """
    client = await system.start_client("client")
    await client.wait_ready()
    sampling = _greedy(new).model_dump(mode="json")
    client.ask({"id": "plan", "tokens": [1] * prompt, "sampling": sampling})
    client.end_input()
    async for line in client.lines():
        if "peak_rss" in line:
            return int(line["peak_rss"])
    raise AssertionError("a client process tells its peak before it ends")


async def trunk_peak_bytes(watch: StatusWatch) -> int:
    """The most that any trunk node's process has held so far, as it said at its last heartbeat."""
    return max(node.load.peak_rss_bytes for node in (await watch.report()).nodes)
