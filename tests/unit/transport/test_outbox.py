"""What is put in one breath leaves as one message a peer, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fedsea_mq.protocol.bundle import is_bundle, unbundled
from fedsea_mq.protocol.frames import Parts
from fedsea_mq.transport.outbox import ENOUGH, Outbox


class Wire:
    """What was transmitted."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Parts]] = []
        self.runs: list[int] = []

    def transmit(self, peer: bytes, parts: Parts, run: Sequence[Parts]) -> None:
        self.sent.append((peer, parts))
        self.runs.append(len(run))


def message(text: str) -> Parts:
    return [text.encode(), b"body"]


async def test_what_is_put_in_one_breath_goes_together_and_the_next_breath_apart() -> None:
    wire = Wire()
    outbox = Outbox(wire.transmit)
    for text in ("a", "b", "c"):
        outbox.put(b"", message(text))
    assert wire.sent == []
    await asyncio.sleep(0)
    ((_, parts),) = wire.sent
    assert is_bundle(parts)
    assert unbundled(parts) == [message("a"), message("b"), message("c")]
    outbox.put(b"", message("d"))
    await asyncio.sleep(0)
    assert wire.sent[1:] == [(b"", message("d"))]
    assert wire.runs == [3, 1]


async def test_peers_are_kept_apart() -> None:
    wire = Wire()
    outbox = Outbox(wire.transmit)
    for peer, text in ((b"x", "a"), (b"y", "b"), (b"x", "c")):
        outbox.put(peer, message(text))
    outbox.flush()
    sent = dict(wire.sent)
    assert unbundled(sent[b"x"]) == [message("a"), message("c")]
    assert sent[b"y"] == message("b")
    await asyncio.sleep(0)
    assert len(wire.sent) == 2


async def test_what_is_put_while_flushing_goes_with_the_next_breath() -> None:
    wire = Wire()

    def transmit(peer: bytes, parts: Parts, run: Sequence[Parts]) -> None:
        wire.transmit(peer, parts, run)
        if len(wire.sent) == 1:
            outbox.put(peer, message("again"))

    outbox = Outbox(transmit)
    outbox.put(b"", message("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert wire.sent == [(b"", message("a")), (b"", message("again"))]


async def test_what_is_enough_for_a_message_goes_at_once_and_in_order() -> None:
    wire = Wire()
    outbox = Outbox(wire.transmit)
    messages = [message(str(number)) for number in range(ENOUGH + 5)]
    for one in messages:
        outbox.put(b"", one)
    assert wire.runs == [ENOUGH]
    await asyncio.sleep(0)
    assert wire.runs == [ENOUGH, 5]
    assert [one for _, parts in wire.sent for one in unbundled(parts)] == messages
