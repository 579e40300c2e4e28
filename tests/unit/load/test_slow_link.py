"""The emulated link: its delay, its bandwidth, its order."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics

from fedsea_mq.load.plan import LINKS, Link
from fedsea_mq.load.slow_link import OneWay, SlowLink
from fedsea_mq.transport.link import PeerLink
from nodes.load.slow_peer_link import link_over


def way(link: Link) -> OneWay:
    return OneWay(link, random.Random(0))


def test_a_message_takes_the_delay_and_its_time_on_the_wire() -> None:
    link = way(Link(delay_ms=25, mbps=8))
    assert abs(link.arrival(100.0, 1000) - 100.026) < 1e-6


def test_messages_share_the_wire_one_after_another() -> None:
    link = way(Link(mbps=8))
    first, second = link.arrival(0.0, 1000), link.arrival(0.0, 1000)
    assert abs(first - 0.001) < 1e-6
    assert abs(second - 0.002) < 1e-6


def test_jitter_is_about_the_delay_and_never_reorders() -> None:
    link = way(Link(delay_ms=40, jitter_ms=15))
    sent = [n * 1.0 for n in range(2000)]
    late = [link.arrival(at, 100) - at for at in sent]
    assert 0.038 <= statistics.mean(late) <= 0.042
    assert min(late) >= 0.025 - 1e-9
    assert max(late) <= 0.055 + 1e-9
    close = way(Link(delay_ms=40, jitter_ms=15))
    times = [close.arrival(n * 0.001, 100) for n in range(2000)]
    assert all(before < after for before, after in itertools.pairwise(times))


def test_loss_is_a_retransmission_and_nothing_is_lost() -> None:
    link = way(Link(delay_ms=10, loss=0.1))
    late = [link.arrival(n * 1.0, 100) - n for n in range(5000)]
    share = sum(seconds > 0.2 for seconds in late) / len(late)
    assert 0.08 <= share <= 0.12


async def test_a_slow_link_hands_on_everything_in_order_and_late() -> None:
    got: list[tuple[int, float]] = []
    loop = asyncio.get_running_loop()
    link: SlowLink[int] = SlowLink(
        Link(delay_ms=20, jitter_ms=5), random.Random(0), lambda n: got.append((n, loop.time()))
    )
    begun = loop.time()
    for n in range(200):
        link.send(n, 100)
    assert got == []
    await asyncio.sleep(0.1)
    assert [n for n, _ in got] == list(range(200))
    assert got[0][1] - begun >= 0.015


def test_a_plain_network_is_no_emulation_at_all() -> None:
    assert link_over(LINKS["lan"], seed=0) is PeerLink
    assert link_over(LINKS["wan"], seed=0) is not PeerLink
