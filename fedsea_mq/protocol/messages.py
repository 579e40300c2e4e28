"""The body of each kind of frame: typed, bounded, validated as it is read.

A body is a msgpack map of the fields below. Bounds stand in the types, so a field off the wire is
in range or the frame is refused; nothing is coerced.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final, TypeVar, get_args

from pydantic import AfterValidator, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from fedsea_mq.errors import (
    Busy,
    FedSeaError,
    LocalError,
    RemoteError,
    error_from_wire,
)
from fedsea_mq.protocol import training_messages as training
from fedsea_mq.protocol.adapter_ref import AdapterRef, HeldAdapters
from fedsea_mq.protocol.bounded import (
    BODY,
    MAX_POSITIONS,
    MIN_PAUSE_MS,
    Blocks,
    ClientId,
    Count,
    Digest,
    Endpoint,
    Hidden,
    Milliseconds,
    Name,
    OwnerId,
    Pause,
    Positions,
    PublicKeyBytes,
    Rate,
    Role,
    SessionId,
    Share,
    Signature,
    TraceIds,
)
from fedsea_mq.protocol.fields import (
    MAX_MESSAGE_CHARS,
    STRAY_LIST,
    decode_fields,
    encode_fields,
)
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.stage import Onward, Stage

MAX_BODY_BYTES: Final = 4096
MAX_LISTING_BYTES: Final = 1 << 20
MAX_NODES: Final = 1024
MAX_SESSIONS_A_NODE: Final = 16_384
MAX_TERMS_BYTES: Final = 1024


def _distinct(sessions: list[bytes]) -> list[bytes]:
    if len(set(sessions)) < len(sessions):
        raise ValueError("a session twice")
    return sessions


@dataclass(frozen=True, slots=True, config=BODY)
class Open:
    """Client asks for a session of up to `max_positions` on a node of this fingerprint.

    `client` is whose session it is: the broker sets it, whatever the client wrote there, to the id
    of the client's key or, where there are no keys, to a name of its connection. `urgency` orders a
    client's own work when there is not room for all of it: 0 interactive, 1 normal, 2 background.
    `adapter` is what the trunk's blocks are to be run with; the session stays with it. `seal` is
    the client's ephemeral key, if the session is sealed: see `security.handshake`. `onward` says
    which blocks a stage of a chain asks the next one for; a client asks for the whole trunk.
    `trace` is the request that the session is for, and the client's span in it: random ids, for
    logs and spans.
    """

    fingerprint: Digest
    max_positions: Positions
    dtype: WireDtype
    client: ClientId = b""
    urgency: Annotated[int, Field(strict=True, ge=0, le=2)] = 1
    adapter: AdapterRef | None = None
    seal: PublicKeyBytes | None = None
    onward: Onward | None = None
    trace: TraceIds | None = None

    @property
    def as_asked(self) -> Open:
        """What both ends of the session know of it: all but what is for the broker to say."""
        onward = None if self.onward is None else Onward(self.onward.first)
        return replace(self, client=b"", onward=onward)

    @property
    def entry(self) -> int | None:
        """The first of the blocks asked for; None for the trunk's."""
        return None if self.onward is None else self.onward.first

    @property
    def served(self) -> bytes:
        """Whom it is for in the end: between these, fairness is."""
        return self.client if self.onward is None else self.onward.client


@dataclass(frozen=True, slots=True, config=BODY)
class Accept:
    """Node has reserved the KV; frames may hold up to `max_frame_positions`.

    `direct` is where the node takes the session's extend and renew frames itself, if it does, and
    `direct_key` the public key that it has there, if it has one.
    """

    node: Name
    max_frame_positions: Annotated[int, Field(strict=True, ge=1, le=MAX_POSITIONS)]
    lease_ms: Pause
    direct: Endpoint | None = None
    direct_key: PublicKeyBytes | None = None


@dataclass(frozen=True, slots=True, config=BODY)
class SealedAccept:
    """An accept body in a sealed session: the node's keys in clear, and sealed, its `Accept`.

    `signature` is the operator's of `node_key`; empty, if there is none.
    """

    ephemeral: PublicKeyBytes
    node_key: PublicKeyBytes
    signature: Signature
    terms: Annotated[bytes, Field(strict=True, max_length=MAX_TERMS_BYTES)]


@dataclass(frozen=True, slots=True, config=BODY)
class BusyNotice:
    """No room now, as `message` says; ask again after `retry_after_ms`."""

    retry_after_ms: Pause
    message: Annotated[str, Field(strict=True, max_length=MAX_MESSAGE_CHARS)] = "no room now"


@dataclass(frozen=True, slots=True, config=BODY)
class Extend:
    """Make `cached` reach `cached + count` from the states in the payload.

    Prefill, a chunk of it, a decode step and a replay are all this message. The trunk's outputs of
    the last `returned` positions come back. If it `rewinds`, positions from `cached` on that are
    there already are forgotten first: drafts that were wrong, or an answer that is given anew.
    Nobody waits for the outputs longer than `within_ms` after the frame came, if it is given.
    """

    cached: Positions
    count: Annotated[int, Field(strict=True, ge=1, le=MAX_POSITIONS)]
    returned: Positions
    rewinds: Annotated[bool, Field(strict=True)] = False
    within_ms: Milliseconds | None = None


@dataclass(frozen=True, slots=True, config=BODY)
class Result:
    """The positions cached now, and in the payload the last `returned` outputs."""

    cached: Positions
    returned: Positions


@dataclass(frozen=True, slots=True, config=BODY)
class Nothing:
    """The body of renew, renewed, close, leave and status frames."""


@dataclass(frozen=True, slots=True, config=BODY)
class ErrorNotice:
    """A typed error: `code` names the class, `message` says what was expected and what came."""

    code: Annotated[str, Field(strict=True, max_length=64)]
    message: Annotated[str, Field(strict=True, max_length=MAX_MESSAGE_CHARS)]


@dataclass(frozen=True, slots=True, config=BODY)
class Load:
    """What a node holds and does now. Rates are over the last heartbeat interval.

    A new session needs KV for all its positions and one of the `sessions_free`; a node that takes
    none says 0 of both. `direct_sessions` are those of `sessions` whose last extend frame did not
    pass the broker. The peaks are the most that was held at a time in the last interval, training
    apart: sessions that live for less than a heartbeat show in them only.
    """

    kv_positions_free: Count
    kv_positions_total: Count
    sessions: Count
    sessions_free: Count
    direct_sessions: Count = 0
    positions_per_s: Rate = 0.0
    mean_batch: Rate = 0.0
    busy_share: Share = 0.0
    peak_rss_bytes: Count = 0
    sessions_peak: Count = 0
    kv_positions_peak: Count = 0


@dataclass(frozen=True, slots=True, config=BODY)
class Register:
    """A node offers a trunk, or an aggregator its run.

    `sessions` and, in the same order, `owners`, which are what the broker wrote as `client` when
    they were opened, let a restarted broker rebuild its routes; `run` is the training run that the
    node takes part in, if it does; `adapters` are those that sessions may ask for. `stage` says
    which of the trunk's blocks a trunk node serves; without it, all.
    """

    name: Name
    fingerprint: Digest
    head_blocks: Blocks
    tail_blocks: Blocks
    hidden: Hidden
    load: Load
    sessions: Annotated[
        list[SessionId], Field(max_length=MAX_SESSIONS_A_NODE), AfterValidator(_distinct)
    ]
    role: Role = Role.TRUNK
    run: Name | None = None
    adapters: HeldAdapters = Field(default_factory=list)
    owners: Annotated[list[OwnerId], Field(max_length=MAX_SESSIONS_A_NODE)] = Field(
        default_factory=list
    )
    stage: Stage | None = None


@dataclass(frozen=True, slots=True, config=BODY)
class Registered:
    """The broker's terms: send a heartbeat this often; silent for `timeout_ms` means dead."""

    heartbeat_ms: Milliseconds
    timeout_ms: Milliseconds


@dataclass(frozen=True, slots=True, config=BODY)
class NodeStatus:
    """One line of the status report.

    `waiting` are the sessions for which no trunk node of this one's model and stage has room.
    """

    name: Name
    fingerprint: Digest
    head_blocks: Blocks
    tail_blocks: Blocks
    silent_ms: Milliseconds
    load: Load
    role: Role = Role.TRUNK
    run: Name | None = None
    stage: Stage | None = None
    waiting: Count = 0

    @property
    def takes_sessions(self) -> bool:
        """A trunk node that drains, or is full, does not."""
        return self.role is Role.TRUNK and self.load.sessions_free > 0


@dataclass(frozen=True, slots=True, config=BODY)
class StatusReport:
    """The broker's view of its nodes, sessions and traffic since it started.

    What is relayed is what passed the broker: states on a direct path are not in it. `waiting` are
    the sessions in line for room.
    """

    uptime_s: Rate
    sessions: Count
    frames_relayed: Count
    bytes_relayed: Count
    errors: Count
    nodes: Annotated[list[NodeStatus], Field(max_length=MAX_NODES)]
    waiting: Count = 0


Body = (
    Open
    | Accept
    | SealedAccept
    | BusyNotice
    | Extend
    | Result
    | Nothing
    | ErrorNotice
    | Load
    | Register
    | Registered
    | StatusReport
    | training.Enlist
    | training.Forward
    | training.Outputs
    | training.Backward
    | training.Gradient
    | training.Step
    | training.Stepped
    | training.BeginRound
    | training.EndRound
    | training.RoundState
    | training.Ask
    | training.Task
    | training.Update
    | training.Updated
    | training.Secure
    | training.Secured
)
B = TypeVar("B", bound=Body)


_READERS: Final[dict[Any, TypeAdapter[Any]]] = {body: TypeAdapter(body) for body in get_args(Body)}
# Bytes, and elements of a list, of the bodies that hold one; no other has any use for as many.
_LISTINGS: Final = {
    Register: (MAX_LISTING_BYTES, MAX_SESSIONS_A_NODE),
    StatusReport: (MAX_LISTING_BYTES, MAX_SESSIONS_A_NODE),
    training.Forward: (MAX_LISTING_BYTES, training.MAX_SEQUENCES),
    training.BeginRound: (MAX_LISTING_BYTES, training.MAX_MEMBERS),
    training.EndRound: (MAX_LISTING_BYTES, training.MAX_MEMBERS),
}


def encode_body(body: Body) -> bytes:
    """A body as a packed part."""
    return encode_fields(body)


def decode_body(body: type[B], part: bytes) -> B:
    """Read a body of the given type off the wire.

    Raises:
        LimitExceeded: larger than `MAX_BODY_BYTES`, or `MAX_LISTING_BYTES` for a body with a list.
        MalformedFrame: not msgpack, or a field is missing, unknown, out of range or mistyped.
    """
    max_bytes, max_list = _LISTINGS.get(body, (MAX_BODY_BYTES, STRAY_LIST))
    read: B = decode_fields(_READERS[body], part, f"{body.__name__} body", max_bytes, max_list)
    return read


def error_notice(error: FedSeaError) -> ErrorNotice | BusyNotice:
    """How an error is told to the other party."""
    if isinstance(error, Busy):
        pause_ms = max(MIN_PAUSE_MS, round(error.retry_after_s * 1000))
        return BusyNotice(pause_ms, str(error)[:MAX_MESSAGE_CHARS])
    if isinstance(error, LocalError):
        # Our own fault is not theirs to read.
        return ErrorNotice(code=RemoteError.code, message="internal error")
    assert isinstance(error, RemoteError)
    return ErrorNotice(code=error.code, message=str(error)[:MAX_MESSAGE_CHARS])


def raised_from(notice: ErrorNotice | BusyNotice) -> RemoteError:
    """The error that a notice stands for."""
    if isinstance(notice, BusyNotice):
        return Busy(notice.message, notice.retry_after_ms / 1000)
    return error_from_wire(notice.code, notice.message)
