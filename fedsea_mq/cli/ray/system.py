"""A system whose processes Ray places."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedsea_mq.cli.ray.cluster import joined
from fedsea_mq.cli.ray.host import Launch
from fedsea_mq.cli.ray.remote_child import RemoteChild
from fedsea_mq.cli.system import System
from fedsea_mq.settings import Settings

_ON_GPUS: Final = frozenset({"nodes.trunk", "nodes.trainer"})


class RaySystem(System[RemoteChild]):
    """All spread over a cluster's machines, but for the broker, which is beside the command.

    So broker and command, which both have to be there, are lost with one machine, not with either
    of two; and it is known where clients connect to.
    """

    _stack: AsyncExitStack
    _address: str | None

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()  # what is left where nothing was entered
        async with AsyncExitStack() as stack:
            self._address = await stack.enter_async_context(joined(self.settings.ray))
            await super().__aenter__()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *reason: object) -> None:
        await super().__aexit__(*reason)
        await self._stack.aclose()

    async def _launch(self, module: str, name: str, settings: Settings) -> RemoteChild:
        launch = Launch(module, name, settings, self._address, Path.cwd())
        return await RemoteChild.start(launch, self._placement(module))

    def _placement(self, module: str) -> dict[str, Any]:
        """What Ray is asked for: resources, and where."""
        if module == "broker":
            here = ray.get_runtime_context().get_node_id()
            beside = NodeAffinitySchedulingStrategy(here, soft=False)
            return {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": beside}
        gpus = self.settings.ray.gpus if module in _ON_GPUS else 0
        cpus = self.settings.ray.cpus
        return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
