"""Full clients: client nodes with head, noise and tail, fed with random prompts."""

from __future__ import annotations

import random
import time
from contextlib import aclosing
from typing import Self

from fedsea_mq.load.plan import Link
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import Settings
from nodes.client import ClientNode
from nodes.load.job import Job
from nodes.load.slow_peer_link import link_over


class FullClient:
    """One client node, and any number of sessions over it. Use with `async with`."""

    def __init__(self, settings: Settings, link: Link, seed: int) -> None:
        self._node = ClientNode(settings, link_over(link, seed))
        self._rng = random.Random(seed)

    async def __aenter__(self) -> Self:
        await self._node.__aenter__()
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._node.__aexit__(*reason)

    async def run(self, job: Job) -> None:
        """Generate greedily from random token ids, past any end of text.

        Raises:
            RemoteError: as the broker or the trunk says.
        """
        request = job.request
        ids = self._rng.choices(range(self._node.model.vocab), k=request.prompt_tokens)
        sampling = SamplingSettings(max_new_tokens=request.new_tokens, ignore_eos=True)
        generation = self._node.generate(ids, sampling)
        job.traffic = generation.stats.traffic
        async with aclosing(aiter(generation)) as tokens:
            async for _ in tokens:
                job.watch.token(time.monotonic())
                if job.watch.tokens == 1:
                    await job.gate()
                    job.watch.decodes(time.monotonic())
