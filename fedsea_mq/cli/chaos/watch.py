"""What must hold in every simulation, and what broke it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fedsea_mq.protocol.positions import TrunkPositions
from fedsea_mq.serving.trunk_sessions import Compute
from fedsea_mq.simulation.chain_model import ChainModel, Pair
from fedsea_mq.simulation.frames_seen import Numbered, numbered
from fedsea_mq.simulation.world import World

# Who asks so soon after another has asked at the same time: it travels, and is first refused.
_SOON_S: Final = 0.25
_MOST_PASSES: Final = 1


@dataclass(slots=True)
class Watch:
    """Told of what is computed and of what clients are given; keeps what should not have been."""

    world: World
    model: ChainModel
    keeps_sessions: bool
    # Whether a copy of OPEN cannot come so late that it opens a session again, and elsewhere.
    is_orderly: bool
    violations: list[str] = field(default_factory=list)
    _asked: set[Numbered] = field(default_factory=set)
    # Of each client: when it asked for a session, and when it got it.
    _waits: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    # Where each session was computed.
    _computed_on: dict[bytes, str] = field(default_factory=dict)
    # Of each session as a node holds it, by identity: the number of the newest frame computed.
    _newest: dict[int, tuple[TrunkPositions, int]] = field(default_factory=dict)

    def broken(self, who: str, what: str) -> None:
        """Something happened that must not."""
        said = f"{who}: {what}"
        self.violations.append(said)
        self.world.say(who, f"VIOLATION: {what}")

    def computes(self, node: str, work: Compute) -> None:
        """A trunk node begins to compute a frame: on one node only, and no older frame after."""
        session, number = work.envelope.session, work.envelope.seq
        where = self._computed_on.setdefault(session, node)
        if where != node and self.is_orderly:
            self.broken(node, f"session {session[:3].hex()} computes here and on {where}")
        # Opened again under its id, as a copy of OPEN that comes late can do, it begins anew.
        _, newest = self._newest.get(id(work.positions), (work.positions, -1))
        if number <= newest:
            self.broken(node, f"frame {number} of session {session[:3].hex()} after {newest}")
        self._newest[id(work.positions)] = (work.positions, number)

    def recovered(self, who: str, times: int) -> None:
        """So often a client's session was lost."""
        if times and self.keeps_sessions:
            self.broken(who, "its session was lost without need")

    def sends(self, who: str, message: Sequence[bytes]) -> None:
        """A client or node sends; where nothing is lost, it asks nothing twice."""
        for asked in numbered(message):
            if asked in self._asked:
                self.broken(who, f"{asked[0].name} {asked[2]} was sent again, and nothing was lost")
            self._asked.add(asked)

    def waited(self, client: str, asked_at: float) -> None:
        """A client that asked then has its session now."""
        self._waits.setdefault(client, []).append((asked_at, self.world.now))

    def judge_turns(self) -> None:
        """While a client waited, no other one came before it more often than it may."""
        for client, waits in self._waits.items():
            for asked_at, got_at in waits:
                for other, others in self._waits.items():
                    passed = sum(asked_at + _SOON_S < a and g < got_at for a, g in others)
                    if other != client and passed > _MOST_PASSES:
                        self.broken(client, f"{other} came before it {passed} times")

    def given(
        self, who: str, before: Sequence[int], tokens: Sequence[int], rows: Sequence[Pair]
    ) -> None:
        """A client was given the digests of the last positions of `before` and `tokens`."""
        expected = self.model.expected([*before, *tokens])[-len(rows) :] if rows else []
        if list(rows) != expected:
            at = next(i for i, pair in enumerate(rows) if pair != expected[i])
            self.broken(who, f"wrong output at row {at} of {len(rows)}")

    def generated(
        self, who: str, prompt: Sequence[int], tokens: Sequence[int], rows: Sequence[Pair]
    ) -> None:
        """A client was given tokens, one for each row that they were chosen from."""
        expected = self.model.generated(prompt, len(tokens))
        if list(tokens) != expected:
            self.broken(who, "tokens that are not those of an undisturbed run")
        if len(rows) < len(tokens):
            self.broken(who, f"{len(tokens)} tokens of {len(rows)} rows")
        self.given(who, prompt, tokens[:-1], rows[: len(tokens)])
