"""How the ranks of a trunk node find each other, and make sure that they belong together.

Rank 0 keeps a store on an address of its own choosing, loopback unless told otherwise. There each
rank says what it has loaded, and rank 0 answers all at once: go on, or why not.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self

import torch.distributed

from fedsea_mq.errors import EndpointUnavailable, RankLost, RankMismatch
from fedsea_mq.model.tensor_shard import TensorShard

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# Not among what the library's type stubs export.
_TCPStore: Final[Any] = torch.distributed.TCPStore  # type: ignore[attr-defined]
_LOOPBACK: Final = "127.0.0.1"
# A large checkpoint is hashed and read before.
_LOADING_S: Final = 900.0
_LOOK_S: Final = 0.05
# Rank 0 opens its store first of all, but may be started last.
_FINDING_S: Final = 300.0
_VERDICT: Final = "verdict"
_GO_ON: Final = "go on"


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a rank says of itself: a digest of what all must have in common, and what it holds."""

    agreement: str
    tensor_bytes: int

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, said: bytes) -> Self:
        """What `encode` made. Raises `RankMismatch` for anything else."""
        try:
            return cls(**json.loads(said))
        except (ValueError, TypeError) as error:
            raise RankMismatch("a rank says of itself what no rank says") from error


class Listener:
    """Where rank 0 lets the others find it: bound at once, so that its port can be told to them."""

    def __init__(self, endpoint: str | None = None) -> None:
        """Listen there, or on any port of loopback. Raises `EndpointUnavailable`."""
        host, port = _host_and_port(endpoint) if endpoint else (_LOOPBACK, 0)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise EndpointUnavailable(f"{endpoint}: cannot be listened on") from error
        self.address, self.port = self._socket.getsockname()

    @property
    def endpoint(self) -> str:
        """Where the others find it."""
        return f"tcp://{self.address}:{self.port}"

    def close(self) -> None:
        """Stop listening, if the store has not taken that over."""
        self._socket.close()

    def store(self) -> Store:
        """The store, served from a thread of torch's until it is dropped. To be called once."""
        # torch would listen on every address of the machine.
        store: Store = _TCPStore(
            self.address,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=_LOADING_S),
            master_listen_fd=self._socket.detach(),
        )
        return store


def gather(
    store: Store,
    shard: TensorShard,
    own: Introduction,
    is_lost: Callable[[], bool] = lambda: False,
) -> Sequence[Introduction]:
    """As rank 0, wait for all others, and let them go on if they fit; what each said, in order.

    Raises:
        RankMismatch: one holds something else; all are told.
        RankLost: `is_lost` says that one will not come, or it takes too long.
    """
    keys = [_said_by(rank) for rank in range(1, shard.ranks)]
    deadline = time.monotonic() + _LOADING_S
    while not store.check(keys):
        if is_lost() or time.monotonic() > deadline:
            raise RankLost("not all ranks have loaded their share")
        time.sleep(_LOOK_S)
    said = [own, *(Introduction.decode(store.get(key)) for key in keys)]
    if any(one.agreement != own.agreement for one in said):
        reason = "the ranks differ in their model, its numbers, its adapters or this program"
        store.set(_VERDICT, reason)
        store.check([_VERDICT])  # answered only after it is set, and those who wait for it are told
        raise RankMismatch(reason)
    store.set(_VERDICT, _GO_ON)
    return said


def find(endpoint: str) -> tuple[Store, str]:
    """As another rank, the store, and this machine's address on the way there.

    Raises:
        RankLost: rank 0 is not there for long.
    """
    host, port = _host_and_port(endpoint)
    try:
        store: Store = _TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_FINDING_S))
        store.set_timeout(timedelta(seconds=_LOADING_S))
    except RuntimeError as error:
        raise RankLost(f"{endpoint}: rank 0 does not answer") from error
    return store, _own_address(host, port)


def introduce(store: Store, shard: TensorShard, own: Introduction) -> None:
    """As another rank, say what is loaded, and wait for rank 0's word to go on.

    Raises:
        RankMismatch: rank 0 says that it does not fit, or another has this place already.
        RankLost: rank 0 is gone.
    """
    if _asked(lambda: store.add(f"places of {shard.rank}", 1)) > 1:
        raise RankMismatch(f"rank {shard.rank} is another process's")
    _asked(lambda: store.set(_said_by(shard.rank), own.encode()))
    verdict = _asked(lambda: store.get(_VERDICT)).decode(errors="replace")
    if verdict != _GO_ON:
        raise RankMismatch(verdict)


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except RuntimeError as error:
        raise RankLost("rank 0 is gone, or not all ranks came") from error


def _said_by(rank: int) -> str:
    return f"said by {rank}"


def _host_and_port(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def _own_address(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # of a datagram socket: nothing is sent
        address: str = probe.getsockname()[0]
        return address
