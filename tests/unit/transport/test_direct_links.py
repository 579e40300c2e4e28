"""A client's connections to nodes: few, shared, and only where it may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fedsea_mq.protocol.frames import Frame, Parts
from fedsea_mq.protocol.messages import Accept
from fedsea_mq.transport.direct_links import MAX_LINKS, DirectLinks
from fedsea_mq.transport.link import PeerLink
from fedsea_mq.transport.requests import Patience, Requests
from tests.integration.systems import until
from tests.unit.transport.test_direct_listener import ASK, S1, Door, knocking

# Nobody listens on these.
NOWHERE = [f"tcp://127.0.0.1:{port}" for port in range(1, MAX_LINKS + 5)]


def offer(endpoint: str | None) -> Accept:
    return Accept("node", max_frame_positions=8, lease_ms=1000, direct=endpoint)


@asynccontextmanager
async def links(*, wanted: bool = True) -> AsyncIterator[DirectLinks]:
    def broker(_: Parts) -> None:
        return

    requests = Requests(broker, Patience(resend_s=30, give_up_s=60))
    async with DirectLinks(PeerLink, requests, wanted=wanted, max_part_bytes=1 << 16) as made:
        yield made


async def test_a_door_that_answers_for_the_session_is_the_way_to_take() -> None:
    door = Door()
    async with door.listener, links() as made:
        path = await made.path(S1, offer(door.listener.endpoint))
        assert await path.settled() is path
        path.close()
        assert not path.is_usable


@pytest.mark.parametrize(("wanted", "offered"), [(False, NOWHERE[0]), (True, None)])
async def test_without_an_offer_or_against_the_settings_there_is_no_way(
    wanted: bool, offered: str | None
) -> None:
    async with links(wanted=wanted) as made:
        path = await made.path(S1, offer(offered))
        assert await path.settled() is None
        path.close()
        assert len(made) == 0


async def test_however_many_endpoints_are_offered_there_is_an_end_to_connections() -> None:
    async with links() as made:
        paths = [await made.path(S1, offer(endpoint)) for endpoint in NOWHERE]
        assert len(made) == MAX_LINKS
        for path in paths:
            path.close()
        for endpoint in NOWHERE[MAX_LINKS:]:  # takes the place of one that nobody uses
            (await made.path(S1, offer(endpoint))).close()
        assert len(made) == MAX_LINKS


async def test_a_door_that_refused_for_want_of_room_is_used_once_it_has_some(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door, got = Door(most=1), list[Frame]()
    async with door.listener, links() as made:
        async with knocking(door, got) as occupant:
            occupant.send(ASK)
            await until(lambda: bool(got))
            path = await made.path(S1, offer(door.listener.endpoint))
            assert await path.settled() is None
            assert "connection refused" in caplog.text
        async with asyncio.timeout(10):
            while not path.is_usable:
                path.try_again()
                await asyncio.sleep(0.1)
        path.close()


async def test_a_way_that_failed_is_left_until_it_answers_again() -> None:
    door = Door()
    async with door.listener, links() as made:
        path = await made.path(S1, offer(door.listener.endpoint))
        other = await made.path(S1, offer(door.listener.endpoint))
        assert await other.settled() is other
        path.failed()
        assert await path.settled() is None
        assert await other.settled() is None  # what is silent for one is silent for all
        path.try_again()
        await until(lambda: path.is_usable and other.is_usable)
