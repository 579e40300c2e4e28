"""A member's part in a secure aggregation over its session with the aggregator."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np

from fedsea_mq.errors import CheckpointError, MalformedFrame, RevealRefused, TooFewClients
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.secure_aggregation.client import SecureClient
from fedsea_mq.training.secure_aggregation.messages import (
    FromMember,
    KeyList,
    MaskedUpdate,
    ShareList,
    Terms,
    UnmaskRequest,
    decode_message,
    encode_message,
)

T = TypeVar("T")
_SAY_AGAIN_S: Final = 0.05
# Says a record, with a vector if there is one, and waits for what the aggregator says next.
Say = Callable[[list[bytes]], Awaitable[bytes]]


class Run(Protocol):
    """Runs work on the compute thread."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]:
        """What the work gives."""
        ...


class RevealLog:
    """Which survivors a member last unmasked a sum for; kept on disk.

    When a round is repeated, its members send almost the same updates again. The difference of two
    sums over different members would be a single update. So what was revealed in a round is
    revealed again for the same survivors only.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def admit(self, round_number: int, survivors: Sequence[str]) -> None:
        """Note an unmasking before it is answered; survivors by name, whatever their numbers.

        Raises:
            RevealRefused: another one was answered in this round, or one in a later round.
            CheckpointError: the file is damaged.
        """
        asked = sorted(survivors)
        before = self._read()
        if before is not None:
            number, answered = before
            if round_number < number or (round_number == number and answered != asked):
                raise RevealRefused(f"round {round_number}: another sum was unmasked in it before")
        partial = self._file.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            json.dump({"round": round_number, "answered": asked}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._file)

    def _read(self) -> tuple[int, object] | None:
        if not self._file.exists():
            return None
        try:
            said = json.loads(self._file.read_text())
            return int(said["round"]), said["answered"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self._file}: not a record of unmaskings") from error


@dataclass(frozen=True, slots=True)
class Seat:
    """A member's number in one secure aggregation, its name, and all names by their numbers."""

    number: int
    member: str
    roster: Sequence[str]

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Of these members."""
        return [self.roster[number - 1] for number in numbers]


class SecureAttempt:
    """One member's side of one attempt: its secrets are drawn once, and never leave the memory."""

    def __init__(
        self, attempt: bytes, terms: Terms, layout: AdapterLayout, seat: Seat, least: int | None
    ) -> None:
        """`least` is the threshold agreed on, two thirds of the members if None.

        Raises:
            TooFewClients: the terms' threshold is lower than that.
            MalformedFrame: the names are not of these terms, or this member is not at its number.
            AdapterError, OutOfTurn: as `SecureClient`.
        """
        agreed = least if least is not None else -(-2 * terms.members // 3)
        if terms.threshold < agreed:
            raise TooFewClients(f"terms with a threshold of {terms.threshold}, {agreed} agreed")
        named = len(seat.roster) == terms.members and 1 <= seat.number <= terms.members
        if not named or seat.names([seat.number]) != [seat.member]:
            raise MalformedFrame("a roster that is not of these terms, or not of this member")
        self.attempt = attempt
        self.over = False
        self._seat = seat
        self._layout = layout
        self._client = SecureClient(terms, layout, seat.number)
        self._masked: tuple[MaskedUpdate, memoryview] | None = None

    async def take_part(
        self, update: np.ndarray, weight: int, say: Say, run: Run, log: RevealLog
    ) -> None:
        """All four stages; from the first again, with the same words, if the session was lost.

        Raises what `SecureClient` and `RevealLog` refuse with.
        """
        client = self._client
        keys = decode_message(KeyList, await _heard(say, client.keys))
        shares = await run(lambda: client.share(keys))
        boxes = decode_message(ShareList, await _heard(say, shares))
        await run(lambda: client.hold(boxes))
        if self._masked is None:
            self._masked = await run(lambda: client.mask(self._layout.unflatten(update), weight))
        message, vector = self._masked
        request = decode_message(UnmaskRequest, await _heard(say, message, bytes(vector)))
        reveal = client.reveal(request)
        await run(lambda: log.admit(client.terms.round, self._seat.names(request.survivors)))
        await say([encode_message(reveal)])
        self.over = True


async def _heard(say: Say, message: FromMember, *vector: bytes) -> bytes:
    """Say it again until the others have said theirs: what was heard before counts once."""
    while True:
        if answer := await say([encode_message(message), *vector]):
            return answer
        await asyncio.sleep(_SAY_AGAIN_S)
