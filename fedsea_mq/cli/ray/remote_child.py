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

        `options` are those of the actor: what it needs, and where it may be.

        Raises:
            NoPlace: Ray found none within `ray.place_s`.
            ProcessFailed: it cannot run where Ray has put it.
        """
        host = _HOST.options(**options).remote()
        try:
            return cls(launch.name, host, await _placed(host, launch, options))
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


async def _placed(host: Any, launch: Launch, options: Mapping[str, Any]) -> str:
    """The address of the machine on which the actor has started the process."""
    within_s = launch.settings.ray.place_s
    try:
        async with asyncio.timeout(within_s):
            address: str = await host.start.remote(launch)
    except TimeoutError:
        needs = f"{options['num_cpus']:g} CPUs and {options['num_gpus']:g} GPUs"
        said = f"{launch.name}: Ray had no place with {needs} within {within_s:g} s"
        raise NoPlace(said) from None
    except RayError as error:
        raise ProcessFailed(f"{launch.name}: {_why(error)}") from error
    return address


def _why(error: RayError) -> str:
    if isinstance(error, RayTaskError) and isinstance(error.cause, FedSeaError):
        return str(error.cause)
    return f"Ray could not start it: {str(error).strip().splitlines()[-1]}"
