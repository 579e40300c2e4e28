"""What clients do in a simulation, and what they were given for it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from random import Random
from typing import Any

from fedsea_mq.cli.chaos.parties import Party, Stage, client_node
from fedsea_mq.cli.chaos.probing import probe
from fedsea_mq.cli.chaos.scenario import Job, Kind
from fedsea_mq.errors import FedSeaError
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.simulation.chain_model import VOCAB, Pair, digest_in
from nodes.client.node import ClientNode
from nodes.client.session import ClientSession

# How soon somebody leaves who does not wait for an answer: seconds, at most.
_IMPATIENT_S = 0.3
_WANDERINGS = 6
_LONGEST_WAY = 12


class ClientParty(Party):
    """A client that does its jobs, those that were under way again when it was killed."""

    def __init__(self, stage: Stage, number: int, jobs: tuple[Job, ...]) -> None:
        self._left = dict(enumerate(jobs))
        self._node: ClientNode | None = None
        super().__init__(stage, f"client{number}", self._work)

    @property
    def is_done(self) -> bool:
        """Whether all its jobs have ended."""
        return not self._left

    @property
    def left(self) -> int:
        """Jobs that have not ended."""
        return len(self._left)

    @property
    def pending(self) -> int:
        """Requests of its node that have no answer yet."""
        wires = None if self._node is None else self._node._wires
        return len(wires.requests._pending) if self.runs and wires is not None else 0

    async def _work(self, _: Party) -> None:
        self._node = client_node(self)
        async with self._node as node:
            doing = Doing(self.stage, self.name, node)
            if self.stage.scenario.is_crowded:
                for number in list(self._left):
                    await self._do(doing, number)
            else:
                await asyncio.gather(*(self._do(doing, number) for number in list(self._left)))

    async def _do(self, doing: Doing, number: int) -> None:
        job, process = self._left[number], self.process
        await asyncio.sleep(max(0.0, job.after_s - process.time()))
        try:
            await doing.job(number, job)
        except FedSeaError as error:
            if process.alive:
                self.stage.watch.broken(
                    f"{self.name}/{number}", f"ended with {type(error).__name__}: {error}"
                )
        if process.alive:
            self.stage.world.say(self.name, f"job {number} ended")
            del self._left[number]


class Doing:
    """Does the jobs of one client process."""

    def __init__(self, stage: Stage, name: str, node: ClientNode) -> None:
        self._stage = stage
        self._name = name
        self._node = node

    async def job(self, number: int, job: Job) -> None:
        """Do a job to its end. Raises what the client node does."""
        who = f"{self._name}/{number}"
        draw = Random(f"{self._stage.scenario.seed}/{who}")
        if job.kind is Kind.WANDER:
            await self._wander(who, job, draw)
        elif job.kind is Kind.PROBE:
            await probe(self._stage, who, self._node, draw)
        elif job.leaves_after == 0:
            await _impatiently(self._generate(who, job), draw)
        else:
            await self._generate(who, job)

    async def _generate(self, who: str, job: Job) -> None:
        tokens: list[int] = []
        rows: list[Pair] = []
        generation = self._node.generate(
            job.prompt,
            SamplingSettings(max_new_tokens=job.new, seed=0),
            on_logits=lambda row: rows.append(digest_in(row)),
        )
        asked_at = since = self._stage.world.now
        async with aclosing(aiter(generation)) as stream:
            async for token in stream:
                if not tokens and self._stage.scenario.is_crowded:
                    self._stage.watch.waited(self._name, asked_at)
                self._stage.kept_waiting(who, self._stage.world.now - since)
                tokens.append(token.id)
                self._stage.watch.generated(who, job.prompt, tokens, rows)
                if len(tokens) == job.leaves_after:
                    return
                await _rest(job, len(tokens))
                since = self._stage.world.now
        if len(tokens) != job.new:
            self._stage.watch.broken(who, f"{len(tokens)} tokens of {job.new}")
        self._stage.watch.recovered(who, generation.stats.recoveries)

    async def _wander(self, who: str, job: Job, draw: Random) -> None:
        """Go on, back, and away in the middle, in one session."""
        tokens: list[int] = []
        room = len(job.prompt) + _WANDERINGS * _LONGEST_WAY
        async with self._node.session(room) as session:
            fresh = list(job.prompt)
            for step in range(_WANDERINGS):
                tokens = await self._step(who, session, tokens, fresh, draw)
                if draw.random() < 0.4:
                    session.roll_back(draw.randint(0, session.cached))
                    tokens = tokens[: session.cached]
                await _rest(job, step)
                fresh = [draw.randrange(VOCAB) for _ in range(draw.randint(1, _LONGEST_WAY))]
            self._stage.watch.recovered(who, session.recoveries)

    async def _step(
        self, who: str, session: ClientSession, tokens: list[int], fresh: list[int], draw: Random
    ) -> list[int]:
        rows = draw.randint(1, min(len(fresh), session.frame_positions))
        going = session.advance(fresh, lambda logits: [digest_in(row) for row in logits], rows)
        if draw.random() < 0.3:
            given = await _impatiently(going, draw)
        else:
            given = await going
        if given is not None:
            self._stage.watch.given(who, tokens, fresh, given)
        return [*tokens, *fresh][: session.cached]


async def _rest(job: Job, step: int) -> None:
    seconds = job.naps_s if job.naps_s and step == 1 else job.dwells_s
    if seconds:
        await asyncio.sleep(seconds)


async def _impatiently(work: Any, draw: Random) -> Any:
    """The result of a coroutine, or None if it took too long and was cancelled."""
    try:
        async with asyncio.timeout(draw.random() * _IMPATIENT_S):
            return await work
    except TimeoutError:
        return None
