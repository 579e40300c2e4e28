"""Virtual time, and processes in it that run real asyncio code.

One queue holds what happens in all processes, in the order of virtual time; nothing waits in real
time. A process has an event loop of its own, so that it can be killed or frozen like a real one:
what it has yet to do is then dropped, or kept until it goes on.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final, cast

from fedsea_mq.simulation.trace import Trace

_Call = Callable[..., object]
# Rounds in which the tasks of a killed process are unwound; cleaning up may take a few.
_UNWINDINGS: Final = 8


class World:
    """Runs events in the order of their time; those of the same time in the order they were made.

    What fails is noted in `faults`: an exception that no code handles is one, in any process.
    """

    def __init__(self, trace: Trace) -> None:
        self.now = 0.0
        self.trace = trace
        self.faults: list[str] = []
        self.events = 0
        self._numbers = 0
        self._ready: deque[tuple[Process | None, asyncio.Handle]] = deque()
        self._later: list[tuple[float, int, Process | None, asyncio.Handle]] = []

    def at(self, when: float, call: _Call, *arguments: Any) -> asyncio.Handle:
        """Call at a time; outside of any process."""
        handle = asyncio.Handle(call, arguments, _OUTSIDE)
        self.put(None, handle, when)
        return handle

    def put(self, process: Process | None, handle: asyncio.Handle, when: float | None) -> None:
        """Queue an event; without a time, it is for now."""
        if when is None or when <= self.now:
            self._ready.append((process, handle))
        else:
            self._numbers += 1
            heapq.heappush(self._later, (when, self._numbers, process, handle))

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let things happen up to a time, or until `stop` says so before time goes on."""
        ready, later = self._ready, self._later
        while True:
            if not ready:
                if stop():
                    return
                if not later or later[0][0] > until:
                    self.now = until
                    return
                self.now = later[0][0]
                while later and later[0][0] <= self.now:
                    _, _, process, handle = heapq.heappop(later)
                    ready.append((process, handle))
            process, handle = ready.popleft()
            if handle.cancelled():
                continue
            self.events += 1
            if process is None:
                handle._run()
            else:
                process.run(handle)

    def say(self, who: str, what: str) -> None:
        """Put a line into the trace."""
        self.trace.add(self.now, who, what)


class Process:
    """One simulated process: an event loop whose time is the world's.

    It has what asyncio and the parties use of a loop, and runs only as the world lets it.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self._frozen_until = 0.0
        self._held: list[asyncio.Handle] = []
        # Of a killed process: what its unwinding has yet to do.
        self._last: deque[asyncio.Handle] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._readers: dict[int, asyncio.Handle] = {}
        self.on_end: list[Callable[[], None]] = []

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The same, for who asks for a loop of asyncio's."""
        return cast(asyncio.AbstractEventLoop, self)

    def start(self, main: Coroutine[Any, Any, None]) -> None:
        """Run `main`; the process ends with it."""
        self.create_task(main).add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if self.alive and not task.cancelled() and task.exception() is not None:
            self._note(f"ended with {task.exception()!r}")
        self.end()

    def end(self) -> None:
        """Everything that it has yet to do is dropped, and what it holds is let go of."""
        if self.alive:
            self.alive = False
            for call in self.on_end:
                call()

    def kill(self) -> None:
        """SIGKILL. Its coroutines are unwound, but nothing that they do is seen by anyone."""
        if not self.alive:
            return
        self.end()
        self._last = deque()
        self._held.clear()
        for _ in range(_UNWINDINGS):
            tasks = [task for task in self._tasks if not task.done()]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            while self._last:
                self._enter(self._last.popleft())

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds."""
        self._frozen_until = max(self._frozen_until, self.world.now + seconds)
        self.world.at(self._frozen_until, self._thaw)

    def _thaw(self) -> None:
        if not self.is_frozen and self.alive:
            held, self._held = self._held, []
            for handle in held:
                self.world.put(self, handle, None)

    @property
    def is_frozen(self) -> bool:
        """Whether it is stopped now."""
        return self.world.now < self._frozen_until

    def run(self, handle: asyncio.Handle) -> None:
        """Do one thing, if it can."""
        if not self.alive:
            return
        if self.is_frozen:
            self._held.append(handle)
        else:
            self._enter(handle)

    def _enter(self, handle: asyncio.Handle) -> None:
        asyncio._set_running_loop(self.loop)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)

    def _note(self, what: str) -> None:
        self.world.faults.append(f"{self.name}: {what}")
        self.world.say(self.name, what)

    # What asyncio asks of a loop.

    def time(self) -> float:
        """Seconds of virtual time."""
        return self.world.now

    def call_soon(
        self, callback: _Call, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's."""
        handle = asyncio.Handle(callback, args, self.loop, context)
        self._put(handle, None)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: _Call, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        return self.call_at(self.world.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: _Call, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        handle = asyncio.TimerHandle(when, callback, args, self.loop, context)
        self._put(handle, when)
        return handle

    def _put(self, handle: asyncio.Handle, when: float | None) -> None:
        if self.alive:
            self.world.put(self, handle, when)
        elif self._last is not None and when is None:
            self._last.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays in the queue, and is passed over."""

    def create_future(self) -> asyncio.Future[Any]:
        """As asyncio's."""
        return asyncio.Future(loop=self.loop)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        """As asyncio's."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self.loop, name=name, context=context)
        if len(self._tasks) > 2 * _UNWINDINGS and len(self._tasks) % _UNWINDINGS == 0:
            self._tasks = [known for known in self._tasks if not known.done()]
        self._tasks.append(task)
        return task

    def add_reader(self, fd: Any, callback: _Call, *args: Any) -> None:
        """`readable` calls it."""
        self._readers[fd] = asyncio.Handle(callback, args, self.loop)

    def remove_reader(self, fd: Any) -> bool:
        """As asyncio's."""
        return self._readers.pop(fd, None) is not None

    def readable(self, fd: int) -> None:
        """The descriptor tells of something to read."""
        handle = self._readers.get(fd)
        if handle is not None:
            self._put(handle, None)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody handled is a fault of the code."""
        error = context.get("exception")
        if self.alive:
            self._note(f"{context.get('message')}: {error!r}")

    def get_debug(self) -> bool:
        """No."""
        return False

    def is_running(self) -> bool:
        """Whether it may still do something."""
        return self.alive

    def is_closed(self) -> bool:
        """Whether it ended."""
        return not self.alive


class _Outside:
    """What happens to processes rather than in them: a fault there is one of the simulation."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise RuntimeError("the simulation itself failed") from context.get("exception")

    def get_debug(self) -> bool:
        return False


_OUTSIDE: Final = cast(asyncio.AbstractEventLoop, _Outside())
