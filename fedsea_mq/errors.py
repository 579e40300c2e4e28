"""Every error fedsea_mq raises on purpose, arranged by whose fault it is.

`LocalError`: this process or its configuration is at fault; retrying changes nothing.
`RemoteError`: another party is at fault, or could not be reached; each has a wire `code`,
so that an error raised on a trunk node or broker is raised on the client as the same class.

Messages never carry text, token ids or hidden states: they say what was expected and what came,
in sizes, positions, names and digests only.
"""

from __future__ import annotations

from typing import ClassVar


class FedSeaError(Exception):
    """Base of every error that fedsea_mq raises on purpose."""


class LocalError(FedSeaError):
    """The fault lies in this process, its arguments or its files."""


class ConfigError(LocalError):
    """A configuration file or override names an unknown key or holds a value of the wrong type."""


class PlaintextRefused(ConfigError):
    """An endpoint off loopback without a key, or a peer that has none where this process has."""


class KeyFileError(LocalError):
    """A key's file is missing, malformed, or may be read or changed by others than its owner."""


class IllegalCut(LocalError):
    """The two cut points leave no trunk, or ask for more blocks than the model has."""


class UnevenShards(LocalError):
    """The model's heads or features cannot be dealt out evenly to the ranks of a trunk node."""


class UnsupportedModel(LocalError):
    """The checkpoint is not of a family whose split result is known to equal the unsplit model."""


class CheckpointError(LocalError):
    """A checkpoint folder lacks a file or tensor, or holds one that is damaged."""


class ContextOverflow(LocalError):
    """The prompt and the tokens asked for exceed the positions that the session may hold."""


class InvalidPrompt(LocalError):
    """A prompt that is empty, not of the model's vocabulary, or a chat without a template."""


class TaskDataError(LocalError):
    """A task's data cannot be read, or a record lacks a field or holds a wrong one."""


class AdapterError(LocalError):
    """Not a LoRA adapter of this model, adapters that do not fit, or one that is not held here."""


class TrainingDiverged(LocalError):
    """A loss or a gradient is not a finite number; the adapters were not changed by it."""


class RoundsExhausted(LocalError):
    """A training run was given up: the last attempt at one of its rounds came to nothing."""


class NotRunning(LocalError):
    """A node, link or session was used before `async with` entered it or after it was left."""


class StepStuck(LocalError):
    """The compute thread does not come back from a step; its node cannot go on."""


class RankMismatch(LocalError):
    """The ranks of a trunk node do not hold the same model, or two of them claim one place."""


class RankLost(LocalError):
    """A rank of a trunk node is gone, or does not answer; no step can be computed any more."""


class NotReady(LocalError):
    """What is to serve does not, yet or any more."""


class EndpointUnavailable(LocalError):
    """An endpoint that cannot be listened on or connected to: taken, or not an endpoint."""


class SendQueueFull(LocalError):
    """The outgoing queue to a peer is at its bound; nothing was sent."""


class ProcessFailed(LocalError):
    """A child process ended before it was ready, or with an error."""


class NoPlace(ProcessFailed):
    """A cluster had no room for a process within the time given."""


class LoadTestFailed(LocalError):
    """Of a load test's requests none succeeded, so there is nothing that it measured."""


class MasksSpent(LocalError):
    """A second update was to be masked with the masks of the first, which would uncover both."""


class RemoteError(FedSeaError):
    """Another party is at fault, or cannot be reached."""

    code: ClassVar[str] = "remote"


class MalformedFrame(RemoteError):
    """Bytes off the wire are not a frame of this protocol."""

    code = "malformed"


class UnsupportedVersion(RemoteError):
    """The frame is of a protocol version that this process does not speak."""

    code = "version"


class LimitExceeded(RemoteError):
    """A frame, or what it asks for, is larger than its declared limit."""

    code = "limit"


class FingerprintMismatch(RemoteError):
    """No node serves the model (weights, config and cut) that the client holds."""

    code = "fingerprint"


class AdapterUnknown(RemoteError):
    """No node of the client's model holds an adapter of this name."""

    code = "adapter_unknown"


class AdapterMismatch(RemoteError):
    """The nodes' adapter of this name is not of the set that the client's is of."""

    code = "adapter_mismatch"


class RunUnknown(RemoteError):
    """No trunk node or aggregator of this training run is registered."""

    code = "run_unknown"


class RunMismatch(RemoteError):
    """The party's settings of a run are not those of the others."""

    code = "run_mismatch"


class AttemptOver(RemoteError):
    """The attempt at a round that the frame belongs to is over, or this member is not in it."""

    code = "attempt_over"


class RunGivenUp(RemoteError):
    """The aggregator gave the run up: every attempt at a round came to nothing."""

    code = "run_given_up"


class Busy(RemoteError):
    """There is no room now; try again after `retry_after_s` seconds."""

    code = "busy"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SealBroken(RemoteError):
    """A frame is not as the other end of the session sealed it: changed, swapped, or in clear."""

    code = "seal_broken"


class SealRequired(RemoteError):
    """The node takes sealed sessions only, and the client would not seal."""

    code = "seal_required"


class KeyUntrusted(RemoteError):
    """The node's key is neither pinned by the client nor signed by the operator it trusts."""

    code = "key_untrusted"


class SessionUnknown(RemoteError):
    """The session does not exist: never opened, closed, or its lease ran out."""

    code = "session_unknown"


class SessionLost(RemoteError):
    """The node that held the session is gone; its KV cache with it."""

    code = "session_lost"


class NotTrusted(RemoteError):
    """The key is not on the other side's list, or not as what this needs."""

    code = "not_trusted"


class SessionNotYours(RemoteError):
    """The session belongs to another key than the one that the frame came with."""

    code = "session_not_yours"


class MemberReplaced(RemoteError):
    """Another process has enlisted under this member's name, and takes part in its place."""

    code = "member_replaced"


class PositionGap(RemoteError):
    """A frame starts beyond the positions that are cached."""

    code = "position_gap"


class PositionConflict(RemoteError):
    """A frame re-sends cached positions with other bytes, or overtakes one still in flight."""

    code = "position_conflict"


class NodeUnknown(RemoteError):
    """The broker does not know the node that speaks; it must register again."""

    code = "node_unknown"


class StepFailed(RemoteError):
    """The node's compute step failed; the positions were not cached."""

    code = "step_failed"


class TrunkDiverged(RemoteError):
    """The trunk's gradients in training are not finite numbers; once more would change nothing."""

    code = "trunk_diverged"


class BatchMismatch(RemoteError):
    """A training batch is empty, or its states, labels or gradients do not fit its lengths."""

    code = "batch_mismatch"


class TicketInUse(RemoteError):
    """A forward pass under this ticket still waits for its gradient."""

    code = "ticket_in_use"


class TicketUnknown(RemoteError):
    """No forward pass waits under this ticket: never made, answered, or given up since."""

    code = "ticket_unknown"


class DeadlineExceeded(RemoteError):
    """The result would come after its deadline; the positions were not cached."""

    code = "deadline"


class PeerUnreachable(RemoteError):
    """The peer does not answer, or its connection is gone."""

    code = "unreachable"


class UpdateRefused(RemoteError):
    """An update that is late, was not asked for, or is not of the agreed shapes, finite numbers."""

    code = "update_refused"


class OutOfTurn(RemoteError):
    """A message of another round, stage or member, or a second one with other content."""

    code = "out_of_turn"


class TooFewClients(RemoteError):
    """Fewer clients are left than an average, or the threshold of a secure one, needs."""

    code = "too_few_clients"


class RevealRefused(RemoteError):
    """An unmasking that would reveal both secrets of one client, or is not of enough clients."""

    code = "reveal_refused"


class ShareMismatch(RemoteError):
    """The secret rebuilt from the clients' shares is not the one that its owner announced."""

    code = "share_mismatch"


_BY_CODE: dict[str, type[RemoteError]] = {
    cls.code: cls
    for cls in (
        MalformedFrame,
        UnsupportedVersion,
        LimitExceeded,
        FingerprintMismatch,
        AdapterUnknown,
        AdapterMismatch,
        RunUnknown,
        RunMismatch,
        AttemptOver,
        RunGivenUp,
        SealBroken,
        SealRequired,
        KeyUntrusted,
        SessionUnknown,
        SessionLost,
        NotTrusted,
        SessionNotYours,
        MemberReplaced,
        PositionGap,
        PositionConflict,
        NodeUnknown,
        StepFailed,
        TrunkDiverged,
        BatchMismatch,
        TicketInUse,
        TicketUnknown,
        DeadlineExceeded,
        PeerUnreachable,
        UpdateRefused,
        OutOfTurn,
        TooFewClients,
        RevealRefused,
        ShareMismatch,
    )
}


def code_of(error: FedSeaError) -> str:
    """The wire code of an error; `local` for those that have none."""
    return error.code if isinstance(error, RemoteError) else "local"


def error_from_wire(code: str, message: str) -> RemoteError:
    """The typed error for a wire `code`; an unknown code becomes a plain `RemoteError`."""
    return _BY_CODE.get(code, RemoteError)(message)
