"""A secure round from stage to stage: who is waited for, for how long, and what each is told.

What the members send is raw here: a record, whose type follows from the stage, and the vector
beside it. The same record again is the same question: it gets the answer that the first one gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedsea_mq.errors import MalformedFrame, OutOfTurn, TooFewClients
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.averaging import MAX_WEIGHT
from fedsea_mq.training.round_plan import RoundId
from fedsea_mq.training.secure_aggregation.messages import (
    FromMember,
    Keys,
    MaskedUpdate,
    Reveal,
    Roster,
    Shares,
    Stage,
    Terms,
    decode_message,
    encode_message,
)
from fedsea_mq.training.secure_aggregation.server import SecureServer

_SAYS: Final[dict[Stage, type[FromMember]]] = {
    Stage.KEYS: Keys,
    Stage.SHARES: Shares,
    Stage.MASKED: MaskedUpdate,
    Stage.UNMASK: Reveal,
}


@dataclass(frozen=True, slots=True)
class SecureRules:
    """What the rounds of a run have in common; `threshold` None is two thirds of the members."""

    layout: AdapterLayout
    max_abs: float
    stage_s: float
    threshold: int | None = None

    def terms(self, round_id: RoundId, attempt: bytes, members: int) -> Terms:
        """The terms of an attempt among so many. Raises `TooFewClients`."""
        wanted = -(-2 * members // 3) if self.threshold is None else self.threshold
        threshold = max(wanted, members // 2 + 1)
        if threshold > members or members < 2:
            raise TooFewClients(f"{members} members, the threshold is {threshold}")
        return Terms(
            round=round_id.number,
            attempt=round_id.attempt,
            nonce=attempt,
            members=members,
            threshold=threshold,
            layout=self.layout.digest,
            elements=self.layout.elements,
            max_weight=MAX_WEIGHT,
            max_abs=self.max_abs,
        )


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked vector for the server to receive, off the loop."""

    number: int
    message: MaskedUpdate
    vector: bytes


class SecureStages:
    """One attempt. `members` are numbered from 1, in their order."""

    def __init__(
        self, terms: Terms, rules: SecureRules, members: tuple[str, ...], now: float
    ) -> None:
        self.server = SecureServer(terms, rules.layout)
        self.members = members
        self._numbers = {member: number for number, member in enumerate(members, 1)}
        self._stage_s = rules.stage_s
        self._deadline = now + rules.stage_s
        self._lost: set[int] = set()
        self._declined: set[int] = set()
        # By number: the stage of each record, and that of the record which came last.
        self._said: dict[int, dict[bytes, Stage]] = {}
        self._asking: dict[int, Stage] = {}
        self._told: dict[tuple[Stage, int], bytes] = {}
        # Vectors that are being added: nobody may touch the server meanwhile.
        self._adding: dict[int, bytes] = {}

    @property
    def done(self) -> bool:
        """Whether the mean can be had."""
        return self.server.stage is Stage.DONE

    def number_of(self, member: str) -> int | None:
        """The member's number, if it is one."""
        return self._numbers.get(member)

    def invitation(self, member: str) -> list[bytes] | None:
        """The terms, and who has which number, for one who may take part from the start.

        Or go on, if it has lost no more than its session: then it says all of it again.
        """
        number = self._numbers.get(member)
        if number is None or number in self._declined or self.done:
            return None
        said = self._said.get(number, {}).values()
        if Stage.UNMASK in said or not (said or self.server.stage is Stage.KEYS):
            return None
        return [encode_message(self.server.terms), encode_message(Roster(list(self.members)))]

    def lose(self, member: str) -> None:
        """Its session is over: it is not waited for."""
        if member in self._numbers:
            self._lost.add(self._numbers[member])

    def decline(self, member: str) -> None:
        """It cannot go on: its secrets are gone, or it refuses to."""
        self.lose(member)
        if member in self._numbers:
            self._declined.add(self._numbers[member])

    def back(self, member: str) -> None:
        """It is there again, and waited for if it may go on."""
        if self.invitation(member) is not None:
            self._lost.discard(self._numbers[member])

    def receive(self, number: int, record: bytes, vector: bytes) -> Masked | None:
        """Take what a member says; a masked vector is left to be added: then call `added`.

        Raises:
            OutOfTurn: it has said something else at this stage, or is lost to it.
            MalformedFrame: not what the stage asks for.
        """
        stage = self._said.get(number, {}).get(record)
        if stage is not None or self.done:
            self._asking[number] = stage or Stage.UNMASK
            return None
        if self._adding.get(number) == record:
            return None
        stage = self.server.stage
        # The server's own books are not to be read while a vector is being added.
        if number in self._adding or (not self._adding and number not in self.server.waiting_for):
            raise OutOfTurn(f"member {number} has said its part at stage {stage.name}, or is lost")
        message = decode_message(_SAYS[stage], record)
        if isinstance(message, MaskedUpdate):
            self._check_vector(vector)
            self._adding[number] = record
            return Masked(number, message, vector)
        if vector:
            raise MalformedFrame(f"a vector with a {type(message).__name__}")
        self.server.receive(number, message)
        self._heard(number, record)
        return None

    def _check_vector(self, vector: bytes) -> None:
        expected = self.server.terms.vector_bytes
        if len(vector) != expected:
            raise MalformedFrame(f"masked vector of {len(vector)} bytes, expected {expected}")

    def added(self, number: int, *, refused: bool) -> None:
        """The server has received a member's vector, or refused to."""
        record = self._adding.pop(number)
        if not refused:
            self._heard(number, record)

    def _heard(self, number: int, record: bytes) -> None:
        stage = self.server.stage
        self._said.setdefault(number, {})[record] = self._asking[number] = stage

    def advance(self, now: float) -> bool:
        """Close the stage if nobody is waited for any more, or at its deadline.

        Whether that was the last: then the mean can be had.

        Raises:
            TooFewClients: fewer than the threshold have answered.
        """
        if self.done or self._adding:
            return False
        if self.server.waiting_for - self._lost and now < self._deadline:
            return False
        stage, told = self.server.stage, self.server.advance()
        for number, message in told.items():
            self._told[stage, number] = encode_message(message)
        self._deadline = now + self._stage_s
        return self.done

    def answer(self, number: int) -> bytes | None:
        """What is to be said to a member's last record; empty after its last, None as yet."""
        stage = self._asking.get(number)
        if stage is None or number in self._adding:
            return None  # what it was told before is not about this
        return b"" if stage is Stage.UNMASK and self.done else self._told.get((stage, number))
