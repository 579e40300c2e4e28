"""A client that sends what ours never would, and knows what must come of it."""

from __future__ import annotations

from random import Random

import torch

from fedsea_mq.cli.chaos.parties import Stage
from fedsea_mq.errors import PositionConflict, PositionGap, RemoteError, SessionLost, SessionUnknown
from fedsea_mq.model.wire_states import decode_states, encode_states
from fedsea_mq.protocol.envelope import SESSION_BYTES, Kind
from fedsea_mq.protocol.messages import Extend, Open
from fedsea_mq.simulation.chain_model import FINGERPRINT, SPEC, TRUNK, ChainCache
from fedsea_mq.transport.requests import Requests
from nodes.client.node import ClientNode

_FRAMES = 8
_LONGEST = 4


async def probe(stage: Stage, who: str, node: ClientNode, draw: Random) -> None:
    """Send frames that start anywhere, in a session of its own; what is lost with it, is lost."""
    wires = node._wires
    assert wires is not None
    session = wires.entropy(SESSION_BYTES)
    asked = Open(FINGERPRINT, _FRAMES * (_LONGEST + 2), SPEC.dtype)
    try:
        await wires.requests.ask(Kind.OPEN, asked, session=session)
        await _Probe(stage, who, session, wires.requests, draw).run()
    except (SessionLost, SessionUnknown):
        stage.watch.recovered(who, 1)
    finally:
        wires.requests.close(session)


class _Probe:
    """One session, and what its trunk should hold."""

    def __init__(
        self, stage: Stage, who: str, session: bytes, requests: Requests, draw: Random
    ) -> None:
        self._stage = stage
        self._who = who
        self._session = session
        self._requests = requests
        self._draw = draw
        self._expected = ChainCache()

    async def run(self) -> None:
        for _ in range(_FRAMES):
            cached = len(self._expected.rows)
            start = max(0, cached + self._draw.choice((0, 0, 0, -2, -1, 1, 2)))
            count = self._draw.randint(1, _LONGEST)
            body = Extend(start, count, count, rewinds=self._draw.random() < 0.5)
            await self._send(body, _refusal(body, cached))

    async def _send(self, body: Extend, refusal: type[RemoteError] | None) -> None:
        states = [(self._draw.randrange(1 << 20), 0) for _ in range(body.count)]
        payload = encode_states(torch.tensor(states, dtype=torch.float32), SPEC.dtype)
        try:
            reply = await self._requests.ask(
                Kind.EXTEND, body, session=self._session, payload=payload
            )
        except (PositionGap, PositionConflict) as error:
            if type(error) is refusal:
                return
            if self._stage.watch.is_orderly:
                self._stage.watch.broken(self._who, f"{body} was refused: {error}")
            # A late copy of OPEN opened it again, empty.
            raise SessionLost("the node holds another session under its id") from error
        if refusal is not None:
            self._stage.watch.broken(self._who, f"{body} was taken, not a {refusal.__name__}")
            return
        rows = decode_states(reply.payload, body.count, SPEC, torch.float32).tolist()
        expected = self._expected.run(body.cached, states, TRUNK)
        if [tuple(row) for row in rows] != expected:
            self._stage.watch.broken(self._who, f"{body} was answered with other outputs")


def _refusal(body: Extend, cached: int) -> type[RemoteError] | None:
    """The position rule in three lines, of frames that come one after another."""
    if body.cached > cached:
        return PositionGap
    return None if body.cached == cached or body.rewinds else PositionConflict
