"""The other ranks of a tensor-parallel trunk node, as rank 0 sees them: started, met, watched."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from fedsea_mq.errors import ConfigError, NotRunning, RankLost
from fedsea_mq.model.parts import BlockRun
from fedsea_mq.model.tensor_shard import TensorShard
from fedsea_mq.serving.batcher import Batcher
from fedsea_mq.serving.work import SlicedWork
from fedsea_mq.settings import Settings
from fedsea_mq.tensor_parallel.rank_group import RankGroup
from fedsea_mq.tensor_parallel.rendezvous import Introduction, Listener, gather
from fedsea_mq.tensor_parallel.shared_run import LeadingRun

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# Ranks wait for the next step for `trunk.step_timeout_s`, and are spoken to often enough.
_LOOKS: Final = 4
# A thread that spins while it waits for another rank takes the core that this one needs.
_SHARING: Final = {"OMP_WAIT_POLICY": "PASSIVE"}


class Ranks:
    """Ranks 1 and up. Where the settings name no rendezvous, they are processes that this starts.

    Use with `async with`. Raises on entry: `EndpointUnavailable`; `ConfigError` for settings of
    another rank than 0.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.trunk.rank:
            raise ConfigError(f"trunk.rank is {settings.trunk.rank}: no node, but a rank of one")
        self._settings = settings
        self._shard = TensorShard(0, settings.trunk.tensor_parallel)
        self._stack = AsyncExitStack()
        self._ends: list[asyncio.Task[str]] = []
        # Set on the event loop, read on the compute thread while it waits for the others.
        self._lost = threading.Event()
        self._listener: Listener
        self._store: Store
        self._run: LeadingRun | None = None
        self.tensor_bytes: Sequence[int] = ()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._listener = Listener(self._settings.trunk.rendezvous)
            stack.callback(self._listener.close)
            self._store = await asyncio.to_thread(self._listener.store)
            stack.callback(self._drop)
            if self._settings.trunk.rendezvous is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsea-")))
                for rank in range(1, self._shard.ranks):
                    await self._start(rank, folder, stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.__aexit__(None, None, None)

    def lead(self, share: BlockRun, own: Introduction, adapters: Sequence[str]) -> LeadingRun:
        """Wait until all others have loaded theirs, and lead them. For the compute thread.

        Raises:
            RankMismatch: they hold something else.
            RankLost: one ended, or does not come.
        """
        said = gather(self._store, self._shard, own, self._lost.is_set)
        group = RankGroup.connect(
            self._store,
            self._shard,
            self._listener.address,
            share.kv_shape.device,
            self._settings.trunk.step_timeout_s,
        )
        self.tensor_bytes = [one.tensor_bytes for one in said]
        self._run = LeadingRun(share, group, adapters)
        return self._run

    def abandon(self) -> None:
        """Wait for the others no longer: `lead` raises `RankLost`."""
        self._lost.set()

    def dismiss(self) -> None:
        """Let the others end. For the compute thread."""
        if self._run is not None:
            with suppress(RankLost):
                self._run.dismiss()

    async def watch(self, batcher: Batcher) -> None:
        """See that all are there, until the batcher stops. Raises `RankLost` in a group."""
        async with asyncio.TaskGroup() as tasks:
            if self._ends:
                tasks.create_task(self._first_end())
            tasks.create_task(self._look_round(batcher))

    async def _start(self, rank: int, folder: Path, stack: AsyncExitStack) -> None:
        file = folder / f"rank-{rank}.yaml"
        told = {"rank": rank, "rendezvous": self._listener.endpoint}
        self._settings.replace(trunk=told).write(file)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nodes.trunk.rank",
            "--config",
            str(file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            env=_SHARING | os.environ,
            # Ctrl-C is for rank 0, which serves until its sessions have ended.
            start_new_session=True,
        )
        stack.push_async_callback(_kill, process)
        self._ends.append(asyncio.create_task(self._end(rank, process)))

    async def _end(self, rank: int, process: asyncio.subprocess.Process) -> str:
        status = await process.wait()
        self._lost.set()
        return f"rank {rank} ended with status {status}"

    async def _first_end(self) -> None:
        done, _ = await asyncio.wait(self._ends, return_when=asyncio.FIRST_COMPLETED)
        raise RankLost(done.pop().result())

    async def _look_round(self, batcher: Batcher) -> None:
        with suppress(NotRunning):  # why it stopped, the batcher says
            while True:
                await asyncio.sleep(self._settings.trunk.step_timeout_s / _LOOKS)
                await self._look(batcher)

    async def _look(self, batcher: Batcher) -> None:
        looked = asyncio.Event()
        batcher.submit_slices(SlicedWork(self._looking(), lambda _: looked.set()))
        await looked.wait()

    def _looking(self) -> Generator[None, None, None]:
        yield from ()
        if self._run is not None:
            self._run.look_round()

    def _drop(self) -> None:
        del self._store


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End a rank at once: there is nothing in it to finish."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
