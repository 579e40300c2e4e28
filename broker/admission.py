"""Who is let in where, and who waits for room. Pure.

Of each model there is a line of those that found its nodes full. While requests are held in it, all
that ask for the model go through it: nobody passes those that wait, but for what is too little for
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from broker.registry import Node, Registry
from broker.waiting import PATIENCE_S, Line, Place
from fedsea_mq.errors import Busy, FedSeaError
from fedsea_mq.protocol.adapter_ref import AdapterRef
from fedsea_mq.protocol.comebacks import Comebacks
from fedsea_mq.protocol.envelope import Envelope
from fedsea_mq.protocol.messages import Open

# Who is in line is told to ask again this soon; its next request is held.
_SOON_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Ask:
    """A client's request for a session, and when it came."""

    peer: bytes
    envelope: Envelope
    body: Open
    at: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a session goes, with room set aside there, or why it does not."""

    ask: Ask
    outcome: Node | FedSeaError


class Admission:
    """Places sessions by the registry, and keeps those that wait for room."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        # By model and by the block that is asked for: stages of a chain are full each by itself.
        self._lines: dict[tuple[str, int | None], Line[Ask]] = {}
        self._comebacks = Comebacks()

    @property
    def waiting(self) -> int:
        """How many sessions have a place in a line."""
        return sum(len(line) for line in self._lines.values())

    @property
    def asked(self) -> list[Open]:
        """What they wait for."""
        return [ask.body for line in self._lines.values() for ask in line.asks]

    def ask(self, ask: Ask, now: float) -> list[Verdict]:
        """Judge a request and, if room comes of it, those before it; no word of it: it is held.

        Who does not find room is told so at once, and held when it asks again. Those for whom there
        is no place in line are sent away for longer.
        """
        session, place = ask.envelope.session, (ask.body.fingerprint, ask.body.entry)
        line = self._lines.get(place) or Line()
        if not line.in_turn():
            verdict = self._judge(ask)
            if not isinstance(verdict.outcome, Busy):
                _settle(line, verdict)
                return [verdict]
        self._lines[place] = line
        waited = session in line
        # The sessions that a stage goes on with are their clients', not all of one client.
        if not line.join(session, ask.body.served, ask, now):
            return [self._busy(ask, self._comebacks.pause_s(now))]
        verdicts = list(self._serve(line, now))
        if session in line and not waited:
            line.step_out(session, now)
            verdicts.append(self._busy(ask, _SOON_S))
        return verdicts

    def room_was_made(self, now: float) -> list[Verdict]:
        """Those that wait and fit in now."""
        served = [verdict for line in self._lines.values() for verdict in self._serve(line, now)]
        self._lines = {place: line for place, line in self._lines.items() if len(line)}
        return served

    def overdue(self, now: float) -> list[Verdict]:
        """Those that were held long enough, and are to ask again."""
        asks = [ask for line in self._lines.values() for ask in line.overdue(now)]
        return [self._busy(ask, _SOON_S) for ask in asks]

    def gave_up(self, session: bytes) -> None:
        """A session waits no longer, if it did."""
        for line in self._lines.values():
            line.leave(session)

    def client_of(self, session: bytes) -> bytes | None:
        """Whose the session is, if it waits."""
        waiting = (line.ask_of(session) for line in self._lines.values())
        return next((ask.body.client for ask in waiting if ask is not None), None)

    def revoked(self, clients: Collection[bytes]) -> None:
        """Nothing of these clients waits any longer."""
        for line in self._lines.values():
            line.leave_all(lambda ask: ask.body.client in clients)

    def _busy(self, ask: Ask, pause_s: float) -> Verdict:
        return Verdict(ask, Busy(self._registry.lack(ask.body), pause_s))

    def _judge(self, ask: Ask) -> Verdict:
        try:
            return Verdict(ask, self._registry.place(ask.envelope.session, ask.body))
        except FedSeaError as error:
            return Verdict(ask, error)

    def _serve(self, line: Line[Ask], now: float) -> Iterator[Verdict]:
        """Whoever in line fits, or can never be served, in turn."""
        too_large: dict[AdapterRef | None, int] = {}
        turns = line.in_turn()
        while turns:
            place = turns.pop(0)
            verdict = self._judge(place.ask) if _may_fit(place, too_large) else None
            if verdict is not None and not isinstance(verdict.outcome, Busy):
                _settle(line, verdict)
                turns = line.in_turn()
                yield verdict
                continue
            if now - place.asked_at > PATIENCE_S:
                return
            body = place.ask.body
            known = too_large.get(body.adapter, body.max_positions)
            too_large[body.adapter] = min(known, body.max_positions)


def _may_fit(place: Place[Ask], too_large: dict[AdapterRef | None, int]) -> bool:
    """Whether nothing as small was refused just now: with many in line, most are not tried."""
    body = place.ask.body
    return body.adapter not in too_large or body.max_positions < too_large[body.adapter]


def _settle(line: Line[Ask], verdict: Verdict) -> None:
    session = verdict.ask.envelope.session
    if isinstance(verdict.outcome, Node):
        line.granted(session)
    else:
        line.leave(session)
