"""What a member asked in a step and was answered: a frame again gets its answer again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from fedsea_mq.errors import FedSeaError, OutOfTurn
from fedsea_mq.protocol.envelope import Envelope, Kind
from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Body
from fedsea_mq.serving.trunk_sessions import Reply


@dataclass(slots=True)
class _Entry:
    """A frame that was let in; `envelope` is that of its newest copy."""

    digest: bytes
    envelope: Envelope
    reply: Parts | None = None


class Ledger:
    """Frames of one step, by their kind and the number of their batch."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Kind, int], _Entry] = {}

    def __contains__(self, key: tuple[Kind, int]) -> bool:
        return key in self._entries

    def answered(self, kind: Kind, micro: int) -> bool:
        """Whether such a frame came and has its answer."""
        entry = self._entries.get((kind, micro))
        return entry is not None and entry.reply is not None

    def seen(self, frame: Frame, micro: int) -> list[Reply] | None:
        """What to answer a frame that was here before; None for one that was not.

        Raises:
            OutOfTurn: another frame of this kind and number was here.
        """
        entry = self._entries.get((frame.envelope.kind, micro))
        if entry is None:
            return None
        if entry.digest != _digest(frame):
            raise OutOfTurn("a second frame of this step and number, with other content")
        entry.envelope = frame.envelope
        return [_addressed(entry.reply, frame.envelope)] if entry.reply else []

    def admit(self, frame: Frame, micro: int) -> None:
        """Note a frame that is let in."""
        entry = _Entry(_digest(frame), frame.envelope)
        self._entries[frame.envelope.kind, micro] = entry

    def answer(
        self, asked: Kind, micro: int, kind: Kind, body: Body, payload: Sequence[bytes]
    ) -> Reply:
        """The answer to a frame, which is kept for copies of it."""
        entry = self._entries[asked, micro]
        to = entry.envelope
        reply = Frame.build(kind, body, session=to.session, seq=to.seq, payload=payload)
        entry.reply = reply.parts()
        return Reply(entry.reply)

    def refuse(self, asked: Kind, micro: int, error: FedSeaError) -> Reply:
        """Tell that a frame was not done; it may come again."""
        entry = self._entries.pop((asked, micro))
        return Reply(Frame.error(error, entry.envelope).parts())

    def arrived(self, asked: Kind, micro: int) -> None:
        """The answer is known to have arrived: later copies are answered with nothing."""
        self._entries[asked, micro].reply = []

    def clear(self) -> None:
        """The step is over: whatever was answered has arrived."""
        self._entries.clear()


def _digest(frame: Frame) -> bytes:
    digest = blake2b(frame.packed_body, digest_size=16)
    for part in frame.payload:
        digest.update(part)
    return digest.digest()


def _addressed(reply: Parts, to: Envelope) -> Reply:
    kind = Envelope.decode(reply[0]).kind
    return Reply([Envelope(kind, to.session, to.seq).encode(), *reply[1:]])
