"""What all comparisons stand on: the model, systems to load, and processes to measure alone in."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from fedsea_mq.cli.bench.model_b import CUT
from fedsea_mq.cli.loadtest import LoadRun, run_load
from fedsea_mq.cli.processes import Child, LocalSystem
from fedsea_mq.load.plan import Lengths, LoadPlan
from fedsea_mq.load.samples import Sample
from fedsea_mq.settings import Settings

# Often enough for runs of a few seconds.
_SAMPLE_S = 0.2
_HEARTBEAT_MS = 200


@dataclass(frozen=True, slots=True)
class Workbench:
    """The settings of every process of the benchmark, and where its files lie."""

    settings: Settings
    folder: Path

    @classmethod
    def of(cls, folder: Path) -> Workbench:
        """The model of the folder, bf16, one trunk node, one torch thread a process."""
        settings = Settings().replace(
            model={
                "path": str(folder / "model-b"),
                "head_blocks": CUT.head_blocks,
                "tail_blocks": CUT.tail_blocks,
                "dtype": "bf16",
            },
            broker={"heartbeat_ms": _HEARTBEAT_MS},
            trunk={"kv_memory_mb": 4096},
            log={"level": "warning"},
        )
        return cls(settings, folder)

    def threads(self, count: int) -> Workbench:
        """The same with that many torch threads a process."""
        return self.model(threads=count)

    def model(self, **keys: Any) -> Workbench:
        """The same with other keys of the settings' `model`."""
        return Workbench(self.settings.replace(model=keys), self.folder)

    def trunk(self, **keys: Any) -> Workbench:
        """The same with other keys of the settings' `trunk`."""
        return Workbench(self.settings.replace(trunk=keys), self.folder)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Alone]:
        """A process to measure in, without any system."""
        async with AsyncExitStack() as stack:
            # Several run at once, each with settings and a log of its own.
            folder = Path(tempfile.mkdtemp(prefix="alone-", dir=self.folder))
            module = "fedsea_mq.cli.bench.alone"
            child = await Child.start(module, "alone", self.settings, folder)
            stack.push_async_callback(child.stop)
            await child.wait_ready()
            yield Alone(child)

    @asynccontextmanager
    async def broker_alone(self) -> AsyncIterator[LocalSystem]:
        """A broker without trunk nodes."""
        async with LocalSystem(self.settings, trunks=0) as local:
            yield local

    @asynccontextmanager
    async def system(self, **trunk: Any) -> AsyncIterator[System]:
        """A broker and a trunk node, or a chain of them, as processes."""
        async with LocalSystem(self.trunk(**trunk).settings) as local:
            yield System(local)


@dataclass(frozen=True, slots=True)
class Alone:
    """A process that measures one thing at a time."""

    child: Child

    async def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Have it measured; see `alone`."""
        self.child.ask({"task": task, **arguments})
        return await self.child.line()


@dataclass(frozen=True, slots=True)
class System:
    """A running system to put loads on."""

    local: LocalSystem

    async def warm(self, kind: str = "thin") -> None:
        """Let two sessions decode a little, so that the next run is not the first of its kind."""
        await self.together((1, 1), 32, 8, kind=kind)

    async def together(
        self,
        sessions: Sequence[int],
        prompt: int,
        new: int,
        *,
        kind: str = "thin",
        in_turn: bool = False,
    ) -> Served:
        """Each session makes one request; all prefill, then all decode, at once or in turn."""
        plan = LoadPlan(
            kind=kind,
            sessions=tuple(sessions),
            prompt=Lengths(low=prompt, high=prompt),
            new=Lengths(low=new, high=new),
            duration_s=1.0,
            together=True,
            in_turn=in_turn,
        )
        return Served(await self.load(plan))

    async def tokens_per_s_with_prefill(self, sessions: int, prompt: int, new: int) -> float:
        """New tokens of full sessions of one client process over the time from first to last."""
        plan = LoadPlan(
            kind="full",
            sessions=(sessions,),
            prompt=Lengths(low=prompt, high=prompt),
            new=Lengths(low=new, high=new),
            duration_s=1.0,
            once=True,
        )
        tally = (await self.load(plan)).tally
        return tally.tokens / (tally.ended_at - tally.begun_at)

    async def load(self, plan: LoadPlan) -> LoadRun:
        """Run any plan; what meets errors is no measurement."""
        run = await run_load(self.local, plan, sample_s=_SAMPLE_S)
        if errors := run.tally.errors + run.tally.errors_outside:
            raise RuntimeError(f"the load met errors: {dict(errors)}; {run.tally.said}")
        return run


class Served:
    """What a load run shows of the decode steps, from the first session's to the last one's."""

    def __init__(self, run: LoadRun) -> None:
        self.run = run
        tally = run.tally
        begun = run.samples.begun_at
        # A sample tells of the heartbeat interval before it.
        from_s = tally.decode_from - begun + 2 * _HEARTBEAT_MS / 1000
        self.steady = run.samples.between(from_s, tally.decode_until - begun)
        self.tokens_per_s = tally.decode_tokens / (tally.decode_until - tally.decode_from)

    def mean(self, field: str) -> float:
        """The mean of a `Sample` field while all sessions decode."""
        values = [float(getattr(sample, field)) for sample in self._full]
        return sum(values) / len(values) if values else float("nan")

    def busy_of(self) -> dict[str, float]:
        """Each node's mean share of the time in which it computed, while all sessions decode."""
        nodes = {name for sample in self._full for name in sample.busy_of}
        return {
            name: mean(sample.busy_of.get(name, 0.0) for sample in self._full)
            for name in sorted(nodes)
        }

    @property
    def _full(self) -> list[Sample]:
        return [sample for sample in self.steady if sample.batch]

    @property
    def step_s(self) -> float:
        """Time that the trunk computed for each step."""
        return self.mean("busy") * self.mean("batch") / self.mean("positions_per_s")

    def tpot_s(self, percent: float) -> float:
        """A percentile of the sessions' time per output token."""
        return self.run.tally.tpot.percentile(percent)
