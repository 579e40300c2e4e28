"""The simulated sockets do what ZeroMQ's do, in all that the transport relies on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import zmq

from fedsea_mq.errors import EndpointUnavailable, PeerUnreachable, SendQueueFull
from fedsea_mq.simulation.network import Network, Weather
from fedsea_mq.simulation.sockets import SimulatedContext
from fedsea_mq.simulation.trace import Trace
from fedsea_mq.simulation.world import Process, World
from fedsea_mq.transport.loop_socket import Context, LoopSocket
from tests.ports import free_port

Case = Callable[[Context], Awaitable[None]]
Run = Callable[[Case], None]
QUEUED = 8


def for_real(case: Case) -> None:
    async def main() -> None:
        context: Context = zmq.Context()
        try:
            async with asyncio.timeout(30):
                await case(context)
        finally:
            context.destroy(linger=0)

    asyncio.run(main())


def simulated(case: Case) -> None:
    world = World(Trace())
    process = Process(world, "both")
    context = SimulatedContext(process, Network(world, Weather(), "1")).of_zmq()

    async def main() -> None:
        await case(context)

    process.start(main())
    world.run(60.0)
    assert world.faults == []
    assert not process.alive


@pytest.fixture(params=[for_real, simulated])
def run(request: pytest.FixtureRequest) -> Any:
    return request.param


@asynccontextmanager
async def socket(context: Context, kind: int, got: list[Any]) -> AsyncIterator[LoopSocket]:
    made = LoopSocket(
        kind, got.append, max_part_bytes=1 << 16, max_queued=QUEUED, copy=True, context=context
    )
    async with made:
        yield made


async def bound(router: LoopSocket, endpoint: str) -> None:
    """Listen again where another listened until now, which takes ZeroMQ a moment to end."""
    while True:
        with suppress(EndpointUnavailable):
            router.bind(endpoint)
            return
        await asyncio.sleep(0.01)


async def until(holds: Callable[[], object]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def test_messages_come_whole_and_in_order_both_ways(run: Run) -> None:
    async def case(context: Context) -> None:
        at_router, at_dealer = list[Any](), list[Any]()
        async with (
            socket(context, zmq.ROUTER, at_router) as router,
            socket(context, zmq.DEALER, at_dealer) as dealer,
        ):
            dealer.connect(router.bind("tcp://127.0.0.1:*"))
            for number in range(QUEUED):
                dealer.send([b"%d" % number, b"x"])
            await until(lambda: len(at_router) == QUEUED)
            assert [parts[1:] for parts in at_router] == [[b"%d" % n, b"x"] for n in range(QUEUED)]
            router.send([at_router[0][0], b"back"])
            await until(lambda: at_dealer)
            assert at_dealer == [[b"back"]]

    run(case)


def test_what_a_dealer_sends_waits_for_its_peer_up_to_the_limit(run: Run) -> None:
    async def case(context: Context) -> None:
        at_router = list[Any]()
        # A port where none of ZeroMQ's ever listened: one that has just been closed may still
        # accept the connection, and take what is sent with it.
        endpoint = f"tcp://127.0.0.1:{free_port()}"
        async with socket(context, zmq.DEALER, []) as dealer:
            dealer.connect(endpoint)
            for _ in range(QUEUED):
                dealer.send([b"early"])
            with pytest.raises(SendQueueFull):
                dealer.send([b"too many"])
            async with socket(context, zmq.ROUTER, at_router) as router:
                await bound(router, endpoint)
                await until(lambda: len(at_router) == QUEUED)

    run(case)


def test_a_router_says_that_a_peer_is_unknown_or_gone(run: Run) -> None:
    async def case(context: Context) -> None:
        at_router = list[Any]()
        async with socket(context, zmq.ROUTER, at_router) as router:
            with pytest.raises(PeerUnreachable):
                router.send([b"nobody", b"x"])
            async with socket(context, zmq.DEALER, []) as dealer:
                dealer.connect(router.bind("tcp://127.0.0.1:*"))
                dealer.send([b"here"])
                await until(lambda: at_router)

            def is_gone() -> bool:
                try:
                    router.send([at_router[0][0], b"x"])
                except PeerUnreachable:
                    return True
                return False

            await until(is_gone)

    run(case)


def test_a_dealer_whose_router_was_restarted_has_another_name_there(run: Run) -> None:
    async def case(context: Context) -> None:
        before, after = list[Any](), list[Any]()
        async with socket(context, zmq.DEALER, []) as dealer:
            async with socket(context, zmq.ROUTER, before) as router:
                endpoint = router.bind("tcp://127.0.0.1:*")
                dealer.connect(endpoint)
                dealer.send([b"1"])
                await until(lambda: before)
            async with socket(context, zmq.ROUTER, after) as router:
                await bound(router, endpoint)

                def came() -> bool:
                    with suppress(SendQueueFull):
                        dealer.send([b"2"])
                    return bool(after)

                await until(came)
                assert after[0][1:] == [b"2"]
                assert after[0][0] != before[0][0]

    run(case)
