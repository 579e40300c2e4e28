"""What ranks say to each other while they compute: collectives, which all make in one order.

torch's process groups, but none of the process's default one: several nodes may share a process.
What decides who computes what goes over gloo, from main memory; states go over NCCL on a GPU.
Nothing is pickled: only tensors travel, of sizes that both ends know.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed

from fedsea_mq.errors import RankLost
from fedsea_mq.model.tensor_shard import TensorShard

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# Its type stubs know half of what is in it.
_LIBRARY: Final[Any] = torch.distributed


class RankGroup:
    """All ranks of one trunk node; rank 0 leads. Its calls block, so none is for an event loop.

    Every rank makes every call. After a `RankLost` nothing can be said any more, because what the
    others did is not known.
    """

    def __init__(self, shard: TensorShard, plans: Any, states: Any) -> None:
        self.shard = shard
        self._plans: Any = plans
        self._states: Any = states

    @classmethod
    def connect(
        cls,
        store: Store,
        shard: TensorShard,
        address: str,
        device: str,
        patience_s: float,
    ) -> RankGroup:
        """Connect to all others, listening at this machine's `address`.

        A call that takes longer than `patience_s` fails.

        Raises:
            RankLost: not all are there.
        """
        patience = timedelta(seconds=patience_s)
        try:
            plans = _gloo(store, shard, address, patience)
            on_gpu = torch.device(device).type == "cuda"
            states = _nccl(store, shard, device, patience) if on_gpu else plans
        except RuntimeError as error:
            raise RankLost(f"rank {shard.rank} cannot connect to the others") from error
        return cls(shard, plans, states)

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be said any more."""
        return self._plans is None

    def broadcast(self, plan: torch.Tensor) -> None:
        """Rank 0's tensor, in main memory, to all; in place. Raises `RankLost`."""
        self._do(lambda: self._plans.broadcast(plan, 0))

    def broadcast_states(self, states: torch.Tensor) -> None:
        """Rank 0's tensor, on the device, to all; in place. Raises `RankLost`."""
        self._do(lambda: self._states.broadcast(states, 0))

    def sum(self, shares: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors, on the device; in place where it can be.

        Raises:
            RankLost: a rank is gone, or took too long.
        """
        summed = shares.contiguous()
        self._do(lambda: self._states.allreduce(summed))
        return summed

    def all_here(self) -> None:
        """Wait until every rank has called this. Raises `RankLost`."""
        self._do(lambda: self._plans.allreduce(torch.ones(1)))

    def close(self) -> None:
        """Leave; the others notice at their next call."""
        # At the interpreter's end it would be too late for gloo's threads.
        self._plans = self._states = None

    def _do(self, begin: Callable[[], Any]) -> None:
        if self.is_lost:
            raise RankLost("the ranks of this node have parted")
        try:
            begin().wait()
        except RuntimeError as error:
            self.close()
            raise RankLost(
                f"rank {self.shard.rank} of {self.shard.ranks}: another is gone or does not answer"
            ) from error


def _gloo(store: Store, shard: TensorShard, address: str, patience: timedelta) -> Any:
    group = _LIBRARY.ProcessGroupGloo
    options = group._Options()
    # Without one, gloo listens on whatever the machine's name resolves to.
    options._devices = [group.create_device(hostname=address)]
    options._timeout = patience
    return group(_LIBRARY.PrefixStore("gloo", store), shard.rank, shard.ranks, options)


def _nccl(store: Store, shard: TensorShard, device: str, patience: timedelta) -> Any:
    torch.cuda.set_device(device)
    group = _LIBRARY.ProcessGroupNCCL
    options = group.Options()
    options._timeout = patience
    return group(_LIBRARY.PrefixStore("nccl", store), shard.rank, shard.ranks, options)
