"""A process on a machine of a Ray cluster, as the command that had it started sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedsea_mq.cli.ray.host import LOST, Ended, Launch, ProcessHost
from fedsea_mq.cli.started import STOP_S, Started
from fedsea_mq.errors import FedSeaError, NoPlace, ProcessFailed

_HOST: Final[Any] = ray.remote(ProcessHost)
# Of an answer to a stop, beyond the time that the process has.
_ANSWER_S: Final = 10.0
# Between two tries to have it placed, while Ray finds out which machines it still has.
_AGAIN_S: Final = 0.5


class RemoteChild(Started):
    """A process that Ray has placed. `address` is its machine's."""

    def __init__(self, name: str, host: Any, address: str) -> None:
        super().__init__(name)
        self._host = host
        self.address = address
        self._ended: Ended | None = None

    @classmethod
    async def start(cls, launch: Launch, options: Mapping[str, Any]) -> RemoteChild:
        """Have Ray start a process; does not wait until it is ready.

        `options` are those of the actor: what it needs, and where it may be. Ray may put it on a
        machine that it has yet to find gone; then it is asked again.

        Raises:
            NoPlace: Ray found none within `ray.place_s`.
            ProcessFailed: it cannot run where Ray has put it.
        """
        within_s = launch.settings.ray.place_s
        needs = f"{options['num_cpus']:g} CPUs and {options['num_gpus']:g} GPUs"
        reason = f"Ray had no place with {needs} within {within_s:g} s"
        try:
            async with asyncio.timeout(within_s):
                while True:
                    try:
                        return await cls._placed(launch, options)
                    except RayActorError as error:
                        reason = f"{_why(error)}, for {within_s:g} s"
                        await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            raise NoPlace(f"{launch.name}: {reason}") from None
        except RayError as error:
            raise ProcessFailed(f"{launch.name}: {_why(error)}") from error

    @classmethod
    async def _placed(cls, launch: Launch, options: Mapping[str, Any]) -> RemoteChild:
        host = _HOST.options(**options).remote()
        try:
            return cls(launch.name, host, await host.start.remote(launch))
        except BaseException:
            ray.kill(host)
            raise

    async def read_line(self) -> bytes:
        """Its next line as it wrote it; nothing at its end."""
        if self._ended is not None:
            return b""
        try:
            said: bytes | Ended = await self._host.read.remote()
        except RayActorError:
            said = LOST
        if isinstance(said, Ended):
            self._end(said)
            return b""
        return said

    async def wait(self) -> int:
        """Wait until it has ended; what it still says is not kept. As `Started.wait`."""
        while await self.read_line():
            pass
        assert self._ended is not None
        return self._ended.status

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as is known here."""
        return self._ended is None

    @property
    def pid(self) -> None:
        """Nothing: it may run on another machine."""

    def ask(self, request: dict[str, Any]) -> None:
        """Write a line to its input."""
        self._host.write.remote(request)

    async def stop(self, within_s: float = STOP_S) -> int:
        """SIGTERM, then SIGKILL if it does not end; its exit status."""
        if self._ended is not None:
            return self._ended.status
        try:
            async with asyncio.timeout(within_s + _ANSWER_S):
                ended: Ended = await self._host.stop.remote(within_s)
        except (RayActorError, TimeoutError):
            ended = LOST
        return self._end(ended)

    def log_tail(self) -> str:
        """The end of what it logged; known once it has ended."""
        return "no log yet" if self._ended is None else self._ended.log

    def _end(self, ended: Ended) -> int:
        """Give back what Ray set aside for it; the exit status."""
        self._ended = self._ended or ended
        ray.kill(self._host)
        return self._ended.status


def _why(error: RayError) -> str:
    if isinstance(error, RayTaskError) and isinstance(error.cause, FedSeaError):
        return str(error.cause)
    return f"Ray could not start it: {str(error).strip().splitlines()[-1]}"
