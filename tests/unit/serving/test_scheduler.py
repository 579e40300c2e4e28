"""What goes into the next step: budget, chunks, fairness, urgency, deadlines."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from fedsea_mq.errors import Busy
from fedsea_mq.serving.scheduler import Owner, Scheduler, Share, StepLimits, Urgency


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Piece:
    """Work of `positions` positions; every test's sessions are named by a letter and a number."""

    session: str
    positions: int = 1
    client: str = "c"
    urgency: Urgency = Urgency.NORMAL
    deadline: float = math.inf

    @property
    def owner(self) -> Owner:
        return Owner(self.client.encode(), self.session.encode(), self.urgency)


def scheduler(*work: Piece, positions: int = 32, **limits: float) -> Scheduler[Piece]:
    made: Scheduler[Piece] = Scheduler(StepLimits(positions, **limits))  # type: ignore[arg-type]
    for piece in work:
        made.add(piece, 0.0)
    return made


def taken(shares: Sequence[Share[Piece]]) -> dict[str, int]:
    return {share.work.session: share.count for share in shares}


def test_given_nothing_waiting_then_the_step_is_empty() -> None:
    assert scheduler().plan(0.0) == []


def test_decodes_of_all_sessions_share_a_step() -> None:
    made = scheduler(*(Piece(f"s{n}") for n in range(32)))
    assert taken(made.plan(0.0)) == {f"s{n}": 1 for n in range(32)}
    assert len(made) == 0
    assert made.plan(0.0) == []


def test_a_long_prompt_comes_in_chunks_each_where_the_last_one_ended() -> None:
    made = scheduler(Piece("long", 100))
    chunks = [made.plan(0.0)[0] for _ in range(4)]
    assert [(c.start, c.count) for c in chunks] == [(0, 32), (32, 32), (64, 32), (96, 4)]
    assert [c.completes for c in chunks] == [False, False, False, True]
    assert len(made) == 0


def test_decodes_go_before_prompts_and_prompts_fill_the_rest() -> None:
    made = scheduler(Piece("long", 100), Piece("s1"), Piece("s2", 5))
    assert taken(made.plan(0.0)) == {"s1": 1, "s2": 5, "long": 26}


def test_beside_decodes_a_prompt_gets_what_the_caller_allows() -> None:
    asked: list[tuple[int, float]] = []

    def allow(short: int, crowding: float) -> int:
        asked.append((short, crowding))
        return 7

    made = scheduler(Piece("long", 100), Piece("s1"), Piece("s2"))
    assert taken(made.plan(0.0, allow)) == {"s1": 1, "s2": 1, "long": 7}
    assert asked == [(2, 1)]
    assert taken(made.plan(0.0, allow)) == {"long": 32}  # alone, it may have all


@pytest.mark.parametrize(
    ("prompting", "answering", "crowding"),
    [
        pytest.param("a" * 64, "b", 1.0, id="one client's prompts"),
        pytest.param("aab", "cd", 1.0, id="as many clients"),
        pytest.param("abcdef", "gg", 4.0, id="many clients, up to a bound"),
        pytest.param("abc", "a", 3.0, id="one of them has both"),
        pytest.param("a" * 60, "aa", 30.0, id="nobody else is there"),
    ],
)
def test_prompts_are_weighed_by_the_clients_that_want_them(
    prompting: str, answering: str, crowding: float
) -> None:
    asked: list[float] = []
    prompts = [Piece(f"p{n}", 512, client) for n, client in enumerate(prompting)]
    answers = [Piece(f"a{n}", 1, client) for n, client in enumerate(answering)]
    scheduler(*prompts, *answers).plan(0.0, lambda _, crowd: asked.append(crowd) or 1)
    assert asked == [crowding]


def test_decodes_that_fill_the_step_leave_an_eighth_to_prompts() -> None:
    made = scheduler(Piece("long", 100), *(Piece(f"s{n}") for n in range(100)))
    step = taken(made.plan(0.0))
    assert step["long"] == 4
    assert sum(step.values()) == 32


def test_one_sessions_work_is_done_in_order_a_piece_a_step() -> None:
    first, second = Piece("s", 2), Piece("s", 3)
    made = scheduler(first, second)
    assert [share.work for share in made.plan(0.0)] == [first]
    assert [share.work for share in made.plan(0.0)] == [second]


def test_a_client_with_many_sessions_gets_no_more_than_one_with_few() -> None:
    crowd = [Piece(f"a{n}", client="a") for n in range(32)]
    others = [Piece(client, client=client) for client in "bcdefghi"]
    step = taken(scheduler(*crowd, *others, positions=9).plan(0.0))
    assert sum(count for session, count in step.items() if session.startswith("a")) == 1
    assert all(step[client] == 1 for client in "bcdefghi")


def test_with_more_clients_than_room_whoever_got_least_comes_next() -> None:
    made: Scheduler[Piece] = Scheduler(StepLimits(4))
    served = dict.fromkeys("abcdefg", 0)
    for client in served:
        made.add(Piece(client, client=client), 0.0)
    for _ in range(70):
        for share in made.plan(0.0):
            served[share.work.client] += 1
            made.add(share.work, 0.0)  # the next decode of the session
    assert sum(served.values()) == 280
    assert max(served.values()) - min(served.values()) <= 1


def test_being_away_earns_nothing() -> None:
    made: Scheduler[Piece] = Scheduler(StepLimits(1))
    made.add(Piece("a", client="a"), 0.0)
    made.add(Piece("b", client="b"), 0.0)
    turns = []
    for step in range(40):
        if step == 20:  # c comes late, and must not have all the turns that it missed
            made.add(Piece("c", client="c"), 0.0)
        (share,) = made.plan(0.0)
        turns.append(share.work.client)
        made.add(share.work, 0.0)
    late = turns[20:]
    assert 5 <= late.count("c") <= 8


def test_a_clients_urgent_work_goes_before_its_other_work_until_that_is_impatient() -> None:
    background = Piece("slow", client="a", urgency=Urgency.BACKGROUND)
    urgent = [Piece(f"u{n}", client="a", urgency=Urgency.INTERACTIVE) for n in range(8)]
    made = scheduler(background, *urgent, positions=4, patience_s=1.0)
    assert "slow" not in taken(made.plan(0.5))
    assert "slow" in taken(made.plan(1.5))


def test_calling_its_work_urgent_gives_a_client_nothing_over_another() -> None:
    modest = Piece("slow", client="a", urgency=Urgency.BACKGROUND)
    loud = [Piece(f"u{n}", client="b", urgency=Urgency.INTERACTIVE) for n in range(8)]
    assert "slow" in taken(scheduler(modest, *loud, positions=4).plan(0.0))


def test_within_a_client_the_nearer_deadline_goes_first() -> None:
    made = scheduler(Piece("late", deadline=9.0), Piece("soon", deadline=2.0), positions=1)
    assert taken(made.plan(0.0)) == {"soon": 1}


def test_what_is_past_its_deadline_is_taken_out_and_returned() -> None:
    late, fine = Piece("late", 40, deadline=1.0), Piece("fine", deadline=9.0)
    made = scheduler(late, fine)
    made.plan(0.0)  # a chunk of it is done already
    assert made.expire(0.5) == []
    assert made.expire(1.0) == [late]
    assert len(made) == 0


def test_deadlines_of_work_long_done_are_not_kept() -> None:
    made = scheduler()
    for _ in range(20_000):
        made.add(Piece("a", deadline=1e9), 0.0)
        made.plan(0.0)
    assert len(made._deadlines) < 2_000
    made.add(Piece("b", deadline=5.0), 0.0)
    assert [work.session for work in made.expire(5.0)] == ["b"]


def test_nothing_holds_on_to_work_that_is_done() -> None:
    made = scheduler()
    work = Piece("a", deadline=1e9)
    watched = weakref.ref(work)
    made.add(work, 0.0)
    made.plan(0.0)
    del work
    assert watched() is None


def test_more_than_may_wait_is_refused_with_when_to_come_again() -> None:
    made = scheduler(Piece("a"), max_waiting=1, retry_after_s=0.25)
    with pytest.raises(Busy) as refused:
        made.add(Piece("b"), 0.0)
    assert refused.value.retry_after_s == 0.25
    made.plan(0.0)
    made.add(Piece("b"), 0.0)


def test_removed_work_is_never_planned() -> None:
    gone, stays = Piece("gone", 3), Piece("stays", 2)
    made = scheduler(gone, stays)
    assert made.remove(lambda piece: piece is gone) == [gone]
    assert taken(made.plan(0.0)) == {"stays": 2}
