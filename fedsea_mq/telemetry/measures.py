"""Every metric that a party may show: its name, what it means, its labels. The one list of them.

All have two labels besides: `role`, what kind of party shows it, and `node`, which one. The others
take a handful of values each, never a session, a client or a key. Directions are those of the
whole system: `up` from clients to nodes, `down` back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What Prometheus may do with it."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric. `buckets` are upper bounds, of a histogram."""

    name: str
    help: str
    kind: Kind
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def of(self, value: float, *labels: str) -> Reading:
        """Its value now, under the values of its labels."""
        return Reading(self, value, labels)


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of a gauge or a counter."""

    measure: Measure
    value: float
    labels: tuple[str, ...]


def _gauge(name: str, says: str, *labels: str) -> Measure:
    return Measure(f"fedsea_{name}", says, Kind.GAUGE, labels)


def _counter(name: str, says: str, *labels: str) -> Measure:
    return Measure(f"fedsea_{name}_total", says, Kind.COUNTER, labels)


def _histogram(name: str, says: str, buckets: tuple[float, ...]) -> Measure:
    return Measure(f"fedsea_{name}", says, Kind.HISTOGRAM, (), buckets)


_STEPS_S: Final = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.5, 1.0, 5.0),
)
_WAITS_S: Final = (
    *(0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
_COUNTS: Final = tuple(float(1 << power) for power in range(13))
_TRAINING_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

BUILD_INFO: Final = _gauge("build_info", "Always 1, of what runs.", "version", "protocol")
SESSIONS: Final = _gauge("sessions", "Sessions open now; at the broker, those routed.")
DIRECT_SESSIONS: Final = _gauge("direct_sessions", "Of a trunk's, those past the broker.")
NODES: Final = _gauge("nodes", "Nodes that the broker knows to be alive.", "kind")
QUEUE_DEPTH: Final = _gauge(
    "queue_depth", "Pieces of work that wait for a step; at the broker, sessions for room."
)
FRAMES: Final = _counter("frames", "Frames sent and received; at the broker, relayed.", "direction")
BYTES: Final = _counter("bytes", "Bytes of these frames.", "direction")
REFUSED_FRAMES: Final = _counter("refused_frames", "Frames refused, by the error's code.", "code")
BUSY: Final = _counter("busy", "Times that somebody was told, or heard, to come again later.")
PEERS_LET_GO: Final = _counter("peers_let_go", "Peers found gone or too slow, and cut.")

STEP_SECONDS: Final = _histogram("step_seconds", "Time that one step computed.", _STEPS_S)
BATCH_POSITIONS: Final = _histogram("batch_positions", "Positions computed in a step.", _COUNTS)
BATCH_SESSIONS: Final = _histogram("batch_sessions", "Pieces of work that shared a step.", _COUNTS)
QUEUE_WAIT: Final = _histogram(
    "queue_wait_seconds", "Time that work had waited for its first step.", _STEPS_S
)
COMPUTE_SECONDS: Final = _counter("compute_seconds", "Time that the compute thread was busy.")
HELD_BACK: Final = _counter(
    "held_back_seconds", "Time that steps were held back for sessions on their way."
)

KV_RESERVED: Final = _gauge("kv_reserved_bytes", "KV memory that sessions have reserved.")
KV_BUDGET: Final = _gauge("kv_budget_bytes", "KV memory that sessions may reserve.")
SESSIONS_OPENED: Final = _counter("sessions_opened", "Sessions accepted.")
LEASES_EXPIRED: Final = _counter("leases_expired", "Sessions closed because nobody was heard.")
TRAINING_SESSIONS: Final = _gauge("training_sessions", "Members enlisted at a trunk.")

TTFT: Final = _histogram("ttft_seconds", "Time to first token, opening included.", _WAITS_S)
TPOT: Final = _histogram("tpot_seconds", "Time per output token after the first.", _STEPS_S)
TOKENS: Final = _counter("tokens", "Tokens of requests that ended: prompt or new.", "kind")
REQUESTS: Final = _counter("requests", "Requests that ended: done, stopped or failed.", "outcome")
DRAFTS: Final = _counter("draft_tokens", "Tokens guessed and sent ahead.", "verdict")
RETRIES: Final = _counter("retries", "Requests sent again because nothing came back.")
FAILOVERS: Final = _counter("failovers", "Sessions that went to another node, and were replayed.")
UNSENT: Final = _counter("unsent_requests", "Requests that a load process could not start.")

TRAINING_ROUND: Final = _gauge("training_round", "Rounds behind this party.")
TRAINING_STEPS: Final = _counter("training_steps", "Optimiser steps taken.")
TRAINING_STEP_SECONDS: Final = _histogram(
    "training_step_seconds", "Time of an optimiser step, the trunk's part included.", _TRAINING_S
)
TRAINING_SAMPLES: Final = _counter("training_samples", "Examples trained on.")
TRAINING_LOSS: Final = _gauge(
    "training_loss", "Mean loss in nats: a member's last step, or the aggregator's last round."
)
TRAINING_VALIDATION_LOSS: Final = _gauge(
    "training_validation_loss", "Mean loss in nats over a member's held-out examples."
)
TRAINING_MEMBERS: Final = _gauge("training_members", "Members in a session with the aggregator.")
TRAINING_UPDATES: Final = _counter("training_updates", "Updates: counted or refused.", "fate")
TRAINING_REPEATS: Final = _counter("training_repeats", "Attempts at rounds that came to nothing.")

ALL: Final = tuple(one for one in list(globals().values()) if isinstance(one, Measure))
