"""One valid example of each body, and what is wrong for each of its fields."""

from __future__ import annotations

import math
from typing import Any

from fedsea_mq.protocol import messages as m
from fedsea_mq.protocol import training_messages as t
from fedsea_mq.protocol.adapter_ref import MAX_ADAPTERS, AdapterRef
from fedsea_mq.protocol.bounded import MAX_POSITIONS, Role
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.protocol.stage import Onward, Stage

FINGERPRINT = "0123456789abcdef" * 4
ATTEMPT = bytes(range(16))
KEY = bytes(range(32))
ADAPTER = AdapterRef("formal", FINGERPRINT)
LOAD = m.Load(
    kv_positions_free=3,
    kv_positions_total=9,
    sessions=2,
    sessions_free=7,
    direct_sessions=1,
    positions_per_s=1.5,
    mean_batch=2.5,
    busy_share=0.5,
    peak_rss_bytes=2**40,
    sessions_peak=4,
    kv_positions_peak=8,
)
NODE = m.NodeStatus(
    name="trunk-1", fingerprint=FINGERPRINT, head_blocks=1, tail_blocks=1, silent_ms=0, load=LOAD
)
BODIES: list[Any] = [
    m.Open(
        fingerprint=FINGERPRINT,
        max_positions=64,
        dtype=WireDtype.INT8,
        client=b"peer",
        urgency=2,
        adapter=ADAPTER,
        seal=KEY,
        onward=Onward(3, bytes(16), b"peer"),
        trace=bytes(range(24)),
    ),
    m.SealedAccept(ephemeral=KEY, node_key=KEY, signature=bytes(64), terms=bytes(200)),
    m.Accept(
        node="trunk-1", max_frame_positions=512, lease_ms=30_000, direct="tcp://10.0.0.7:65535",
        direct_key=bytes(32),
    ),
    m.BusyNotice(retry_after_ms=500),
    m.Extend(cached=0, count=1, returned=0),
    m.Extend(cached=0, count=1, returned=0, rewinds=True, within_ms=60_000),
    m.Result(cached=1, returned=1),
    m.Nothing(),
    m.ErrorNotice(code="malformed", message="what was expected and what came"),
    LOAD,
    m.Register(
        name="n", fingerprint=FINGERPRINT, head_blocks=0, tail_blocks=1024, hidden=64, load=LOAD,
        sessions=[bytes(16), b"\xff" * 16], role=Role.AGGREGATOR, run="silos",
        adapters=[ADAPTER, AdapterRef("other", FINGERPRINT)], owners=[b"a" * 16, b""],
        stage=Stage(1, 3, 1, 7),
    ),
    m.Registered(heartbeat_ms=1000, timeout_ms=5000),
    m.StatusReport(
        uptime_s=1.0, sessions=1, frames_relayed=2, bytes_relayed=2**53, errors=0, nodes=[NODE],
        waiting=3,
    ),
    t.Enlist(
        role=Role.TRUNK, run="silos", fingerprint=FINGERPRINT, agreed=FINGERPRINT,
        dtype=WireDtype.BF16, member="silo-1", client=b"peer", seal=KEY,
    ),
    t.Forward(attempt=ATTEMPT, step=3, micro=1, trains=True, lengths=[1, MAX_POSITIONS]),
    t.Outputs(step=3, micro=1),
    t.Backward(attempt=ATTEMPT, step=3, micro=1, exponent=-20),
    t.Gradient(step=3, micro=1, exponent=-256, squared_norm=0.25),
    t.Step(attempt=ATTEMPT, step=3, squared_norm=0.25),
    t.Stepped(steps=4),
    t.BeginRound(round=0, attempt=ATTEMPT, local_steps=20, members=["silo-1", "silo-2"]),
    t.EndRound(round=0, attempt=ATTEMPT, counted=["silo-1"]),
    t.RoundState(round=1, attempt=ATTEMPT),
    t.Ask(samples=30, failed=ATTEMPT),
    t.Task(
        duty=t.Duty.TRAIN, round=1, attempt=ATTEMPT, local_steps=20, number=1, again_ms=1000
    ),
    t.Update(attempt=ATTEMPT, weight=30, loss=1.5),
    t.Updated(fate=t.Fate.COUNTED),
    t.Secure(attempt=ATTEMPT),
    t.Secured(attempt=ATTEMPT),
]  # fmt: skip

SECRET = "TOPSECRET"
_NO_COUNT = [-1, 2**53 + 1, 2**63, 1.0, True, "3", None, [3], SECRET]
_NO_POSITIONS = [*_NO_COUNT, MAX_POSITIONS + 1]
_NO_MS = [*_NO_COUNT, 86_400_001]
_NO_BLOCKS = [*_NO_COUNT, 1025]
_NO_RATE = [-0.1, 1e13, math.inf, -math.inf, math.nan, True, "0.5", None, SECRET]
_NO_SHARE = [*_NO_RATE, 1.1]
_NO_DIGEST = [
    "", FINGERPRINT[1:], FINGERPRINT + "0", FINGERPRINT[1:] + "g", FINGERPRINT.upper(),
    FINGERPRINT + "\n", FINGERPRINT.encode(), 5, None, SECRET,
]  # fmt: skip
_NO_NAME = ["", "a" * 65, "a b", "a\n", "ä", "../x", b"abc", 5, None, SECRET + "!"]
_NO_ENDPOINT = [
    "", "tcp://10.0.0.7", "tcp://10.0.0.7:", "tcp://10.0.0.7:*", "tcp://10.0.0.7:0",
    "tcp://10.0.0.7:65536", "tcp://10.0.0.7:7710\n", " tcp://10.0.0.7:7710", "tcp://10.0.0:7710",
    "tcp://10.0.0.256:7710", "tcp://10.0.0.07:7710", "tcp://0.0.0.0:7710", "tcp://*:7710",
    "tcp://224.0.0.1:7710", "tcp://255.255.255.255:1", "tcp://localhost:7710", "tcp://[::1]:7710",
    "tcp://10.0.0.1;10.0.0.7:7710", "tcp://\u0661\u0660.0.0.7:7710", "ipc:///run/docker.sock", "inproc://a",
    "udp://10.0.0.7:7710", "10.0.0.7:7710", b"tcp://10.0.0.7:7710", 5, ["tcp://10.0.0.7:1"], SECRET,
]  # fmt: skip
_NO_LIST = [None, 5, SECRET, {}, {SECRET: 1}, [None], [5], [SECRET], [b"short"], [bytes(17)], [[]]]
_NO_ATTEMPT = [b"", bytes(15), bytes(17), "a" * 16, 5, None, SECRET]
_NO_KEY = [b"", bytes(31), bytes(33), "a" * 32, 5, None, SECRET]
_NO_MEMBERS = [None, 5, SECRET, {}, [None], [5], [b"silo-1"], [""], ["a b"], [], ["a", "a"]]
_NO_MAP = [None, 5, SECRET, [], [SECRET], {}, {SECRET: 1}]
_REF = {"name": "formal", "digest": FINGERPRINT}
_NO_REF = [
    *_NO_MAP, {"name": "formal"}, {"digest": FINGERPRINT}, {**_REF, SECRET: 1},
    *({**_REF, "name": name} for name in _NO_NAME), *({**_REF, "digest": d} for d in _NO_DIGEST),
]  # fmt: skip
_MANY_REFS = [{**_REF, "name": f"a{number}"} for number in range(MAX_ADAPTERS + 1)]

_STAGE = {"first": 1, "stop": 3, "begin": 1, "end": 7}
_NO_STAGE = [
    *_NO_MAP, {"first": 1, "stop": 3}, *({**_STAGE, "first": one} for one in _NO_BLOCKS),
    {**_STAGE, "stop": 1}, {**_STAGE, "first": 0}, {**_STAGE, "end": 2}, {**_STAGE, "begin": 2},
    {**_STAGE, SECRET: 1},
]  # fmt: skip
_NO_ONWARD = [
    *_NO_MAP, {"first": None}, {"first": 1025}, {"first": 3, "session": b"short"},
    {"first": 3, "session": SECRET}, {"first": 3, "client": SECRET}, {"first": 3, SECRET: 1},
]  # fmt: skip

WRONG: dict[str, list[Any]] = {
    "fingerprint": _NO_DIGEST,
    "max_positions": _NO_POSITIONS,
    "dtype": ["fp64", "FP32", "", 1, None, ["fp32"], SECRET],
    "client": ["peer", bytes(256), 5, None, [SECRET]],
    "seal": [key for key in _NO_KEY if key is not None],
    "trace": [
        *(b"", bytes(23), bytes(24), bytes(16) + b"s" * 8, b"t" * 16 + bytes(8), b"t" * 25),
        *("a" * 24, 5, [SECRET], SECRET),
    ],
    "ephemeral": _NO_KEY,
    "node_key": _NO_KEY,
    "signature": [bytes(65), "a" * 64, 5, None, SECRET],
    "terms": [bytes(m.MAX_TERMS_BYTES + 1), "terms", 5, None, SECRET],
    "urgency": [-1, 3, "1", 1.0, True, None, SECRET],
    "node": _NO_NAME,
    "name": _NO_NAME,
    "max_frame_positions": [*_NO_POSITIONS, 0],
    "direct": _NO_ENDPOINT,
    "direct_key": [b"", bytes(31), bytes(33), "a" * 32, 5, [SECRET], SECRET],
    "owners": [None, 5, SECRET, {}, {SECRET: 1}, [None], [5], [SECRET], [bytes(17)], [[]]],
    "lease_ms": [*_NO_MS, 0, 9],
    "retry_after_ms": [*_NO_MS, 0, 9],
    "heartbeat_ms": _NO_MS,
    "timeout_ms": _NO_MS,
    "silent_ms": _NO_MS,
    "within_ms": [one for one in _NO_MS if one is not None],
    "cached": _NO_POSITIONS,
    "count": [*_NO_POSITIONS, 0],
    "returned": _NO_POSITIONS,
    "rewinds": [0, 1, 1.0, "true", None, [True], SECRET],
    "code": ["x" * 65, b"malformed", 5, None, [SECRET]],
    "message": ["x" * (m.MAX_MESSAGE_CHARS + 1), b"text", 5, None, [SECRET]],
    "kv_positions_free": _NO_COUNT,
    "kv_positions_total": _NO_COUNT,
    "peak_rss_bytes": _NO_COUNT,
    "sessions_peak": _NO_COUNT,
    "kv_positions_peak": _NO_COUNT,
    "direct_sessions": _NO_COUNT,
    "sessions_free": _NO_COUNT,
    "frames_relayed": _NO_COUNT,
    "bytes_relayed": _NO_COUNT,
    "errors": _NO_COUNT,
    "waiting": _NO_COUNT,
    "positions_per_s": _NO_RATE,
    "mean_batch": _NO_RATE,
    "uptime_s": _NO_RATE,
    "busy_share": _NO_SHARE,
    "head_blocks": _NO_BLOCKS,
    "tail_blocks": _NO_BLOCKS,
    "hidden": [*_NO_COUNT, 0, (1 << 16) + 1],
    "load": _NO_MAP,
    "nodes": [*_NO_LIST, [{}], [{SECRET: SECRET}]],
    "role": ["server", "TRUNK", "", 1, None, SECRET],
    "run": [name for name in _NO_NAME if name is not None],
    "member": [name for name in _NO_NAME if name is not None],
    "agreed": _NO_DIGEST,
    "attempt": _NO_ATTEMPT,
    "failed": [attempt for attempt in _NO_ATTEMPT if attempt is not None],
    "step": _NO_COUNT,
    "steps": _NO_COUNT,
    "round": _NO_COUNT,
    "number": _NO_COUNT,
    "local_steps": _NO_COUNT,
    "micro": [*_NO_COUNT, 1025],
    "trains": [0, 1, 1.0, "true", None, [True], SECRET],
    "lengths": [None, 5, SECRET, {SECRET: 1}, [None], [SECRET], [[]], [], [0], [True], [1.0]],
    "exponent": [-257, 257, 1.0, True, "3", None, SECRET],
    "squared_norm": _NO_RATE,
    "members": _NO_MEMBERS,
    "counted": _NO_MEMBERS,
    "samples": [*_NO_COUNT, 0, (1 << 20) + 1],
    "weight": [*_NO_COUNT, (1 << 20) + 1],
    "loss": [-0.1, 1e7, math.inf, math.nan, True, "0.5", None, SECRET],
    "duty": ["rest", "TRAIN", "", 1, None, SECRET],
    "fate": ["lost", "COUNTED", "", 1, None, SECRET],
    "again_ms": [*_NO_MS, 0, 9],
    "stage": [stage for stage in _NO_STAGE if stage is not None],
    "onward": [onward for onward in _NO_ONWARD if onward is not None],
    "adapter": [ref for ref in _NO_REF if ref is not None],
    "adapters": [None, 5, SECRET, {}, [_REF, _REF], _MANY_REFS, *([ref] for ref in _NO_REF)],
}


def wrong_for(body: str, field: str) -> list[Any]:
    """Values that `field` of `body` must refuse; `sessions` is a list in one body, else a count."""
    if field == "sessions":
        return [*_NO_LIST, [bytes(16), b""], [bytes(16)] * 2] if body == "Register" else _NO_COUNT
    return WRONG[field]
