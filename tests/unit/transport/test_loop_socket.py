"""Real sockets on this machine: everything arrives, bounds hold, nothing hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import zmq

from fedsea_mq.errors import EndpointUnavailable, NotRunning, PeerUnreachable, SendQueueFull
from fedsea_mq.protocol.frames import MAX_PARTS
from fedsea_mq.transport.loop_socket import LoopSocket


class Inbox:
    """Messages as they arrive."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[list[Any]] = asyncio.Queue()

    def put(self, parts: list[Any]) -> None:
        self._queue.put_nowait(parts)

    async def take(self, count: int = 1) -> list[list[Any]]:
        async with asyncio.timeout(20):
            return [await self._queue.get() for _ in range(count)]


class Sockets:
    """Sockets that are closed when the test ends."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def open(
        self, kind: int, *, max_part_bytes: int = 1 << 20, max_queued: int = 1000, copy: bool = True
    ) -> tuple[LoopSocket, Inbox]:
        inbox = Inbox()
        socket = LoopSocket(
            kind, inbox.put, max_part_bytes=max_part_bytes, max_queued=max_queued, copy=copy
        )
        return await self._stack.enter_async_context(socket), inbox

    async def pair(self, **terms: Any) -> tuple[LoopSocket, Inbox, LoopSocket, Inbox]:
        """A router, and a dealer that is connected to it."""
        router, at_router = await self.open(zmq.ROUTER, **terms)
        dealer, at_dealer = await self.open(zmq.DEALER)
        dealer.connect(router.bind("tcp://127.0.0.1:*"))
        return router, at_router, dealer, at_dealer


@pytest.fixture
async def sockets() -> AsyncIterator[Sockets]:
    async with AsyncExitStack() as stack:
        yield Sockets(stack)


async def test_binding_to_any_port_says_which(sockets: Sockets) -> None:
    router, _ = await sockets.open(zmq.ROUTER)
    endpoint = router.bind("tcp://127.0.0.1:*")
    assert int(endpoint.removeprefix("tcp://127.0.0.1:")) > 0


async def test_given_an_endpoint_that_is_taken_or_none_then_the_error_names_it(
    sockets: Sockets,
) -> None:
    first, _ = await sockets.open(zmq.ROUTER)
    second, _ = await sockets.open(zmq.ROUTER)
    taken = first.bind("tcp://127.0.0.1:*")
    with pytest.raises(EndpointUnavailable, match=f"listen on {taken}"):
        second.bind(taken)
    for use in (second.bind, second.connect):
        with pytest.raises(EndpointUnavailable, match="tcp://nonsense"):
            use("tcp://nonsense")


async def test_far_more_messages_than_a_burst_arrive_all_and_in_order(sockets: Sockets) -> None:
    _, at_router, dealer, _ = await sockets.pair()
    sent = [[b"%d" % number, b"body"] for number in range(900)]
    for parts in sent:
        dealer.send(parts)
    assert [parts[1:] for parts in await at_router.take(900)] == sent


async def test_messages_go_both_ways_at_once(sockets: Sockets) -> None:
    router, at_router, dealer, at_dealer = await sockets.pair()
    dealer.send([b"hello"])
    ((peer, _),) = await at_router.take()
    for number in range(300):
        dealer.send([b"up %d" % number])
        router.send([peer, b"down %d" % number])
    assert [parts[1] for parts in await at_router.take(300)] == [b"up %d" % n for n in range(300)]
    assert await at_dealer.take(300) == [[b"down %d" % n] for n in range(300)]


async def test_parts_can_be_relayed_without_being_copied(sockets: Sockets) -> None:
    router, at_router, dealer, at_dealer = await sockets.pair(copy=False)
    dealer.send([b"envelope", bytes(200_000)])
    ((peer, envelope, payload),) = await at_router.take()
    assert (bytes(envelope), len(payload)) == (b"envelope", 200_000)
    router.send([bytes(peer), envelope, payload])
    assert await at_dealer.take() == [[b"envelope", bytes(200_000)]]


async def test_given_a_peer_that_is_gone_then_a_router_says_so(sockets: Sockets) -> None:
    router, _ = await sockets.open(zmq.ROUTER)
    router.bind("tcp://127.0.0.1:*")
    with pytest.raises(PeerUnreachable):
        router.send([b"nobody", b"hello"])


async def test_a_send_that_fails_strands_no_message_that_came_meanwhile(sockets: Sockets) -> None:
    router, at_router, dealer, _ = await sockets.pair()
    dealer.send([b"hello"])
    await at_router.take()
    for number in range(20):
        dealer.send([b"%d" % number])
        time.sleep(0.01)  # it arrives, and the loop has yet to look
        with pytest.raises(PeerUnreachable):
            router.send([b"nobody", b"hello"])
        ((_, said),) = await at_router.take()
        assert said == b"%d" % number


async def test_given_a_peer_that_does_not_read_then_the_queue_is_bounded(sockets: Sockets) -> None:
    dealer, _ = await sockets.open(zmq.DEALER, max_queued=16)
    dealer.connect("tcp://127.0.0.1:1")
    for _ in range(16):
        dealer.send([b"waits for a broker"])
    with pytest.raises(SendQueueFull, match="16 frames"):
        dealer.send([b"one too many"])


async def test_given_a_message_of_too_many_parts_then_few_are_kept_and_the_next_is_whole(
    sockets: Sockets,
) -> None:
    _, at_router, dealer, _ = await sockets.pair()
    dealer.send([b"part"] * 5000)
    dealer.send([b"next"])
    flood, (_, following) = await at_router.take(2)
    assert len(flood) == 1 + MAX_PARTS + 1  # the peer, a frame, and one to see that it is more
    assert following == b"next"


async def test_given_a_part_over_the_limit_then_its_sender_is_cut_and_others_go_on(
    sockets: Sockets,
) -> None:
    router, at_router = await sockets.open(zmq.ROUTER, max_part_bytes=1000)
    endpoint = router.bind("tcp://127.0.0.1:*")
    hostile, _ = await sockets.open(zmq.DEALER)
    honest, _ = await sockets.open(zmq.DEALER)
    hostile.connect(endpoint)
    honest.connect(endpoint)
    hostile.send([bytes(1001)])
    honest.send([bytes(1000)])
    ((_, part),) = await at_router.take()
    assert len(part) == 1000


async def test_given_a_fault_while_one_message_is_handled_then_the_next_is_not_stranded(
    sockets: Sockets,
) -> None:
    handled: asyncio.Queue[bytes] = asyncio.Queue()

    def stumble(parts: list[Any]) -> None:
        if parts[1] == b"bad":
            raise ValueError("a bug")
        handled.put_nowait(parts[1])

    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: faults.append(said))
    socket = LoopSocket(zmq.ROUTER, stumble, max_part_bytes=1000, max_queued=100, copy=True)
    async with socket as router:
        dealer, _ = await sockets.open(zmq.DEALER)
        dealer.connect(router.bind("tcp://127.0.0.1:*"))
        for part in (b"bad", b"good", b"bad", b"better"):
            dealer.send([part])
        async with asyncio.timeout(20):
            assert [await handled.get(), await handled.get()] == [b"good", b"better"]
    assert [type(said["exception"]) for said in faults] == [ValueError, ValueError]


async def test_closing_does_not_wait_for_a_peer_that_never_came() -> None:
    async with asyncio.timeout(5):
        socket = LoopSocket(zmq.DEALER, Inbox().put, max_part_bytes=1000, max_queued=100, copy=True)
        async with socket:
            socket.connect("tcp://127.0.0.1:1")
            socket.send([b"never delivered"])
    with pytest.raises(NotRunning):
        socket.send([b"too late"])


async def test_what_was_sent_just_before_closing_still_arrives(sockets: Sockets) -> None:
    router, at_router = await sockets.open(zmq.ROUTER)
    endpoint = router.bind("tcp://127.0.0.1:*")
    socket = LoopSocket(zmq.DEALER, Inbox().put, max_part_bytes=1000, max_queued=100, copy=True)
    async with socket:
        socket.connect(endpoint)
        socket.send([b"first"])
        await at_router.take()
        socket.send([b"goodbye"])
    ((_, said),) = await at_router.take()
    assert said == b"goodbye"
