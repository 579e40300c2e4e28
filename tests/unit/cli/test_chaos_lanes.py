"""What a lane makes of what its client says."""

from __future__ import annotations

from random import Random

from fedsea_mq.cli.chaos.live.lanes import Lane, Ledger, requests


class Talk:
    """One lane, and a client that says what the test has it say."""

    def __init__(self, new_tokens: int = 0) -> None:
        self.ledger = Ledger()
        request = {"tokens": [1], "sampling": {"max_new_tokens": new_tokens, "ignore_eos": True}}
        self.lane = Lane("lane0", request, self.ledger)
        self.now = 10.0

    def generation(self, *tokens: int, done: bool = True, every_s: float = 0.1) -> None:
        asked = self.lane.begin()
        for token in tokens:
            self.now += every_s
            self.lane.hear({"id": asked["id"], "token": token, "text": ""}, self.now)
        if done:
            self.lane.hear({"id": asked["id"], "done": {"tokens": list(tokens)}}, self.now)


def test_the_first_generation_is_what_all_others_must_be() -> None:
    talk = Talk()
    assert not talk.lane.knows
    talk.generation(5, 6, 7)
    assert talk.lane.knows
    talk.generation(5, 6, 7)
    assert (talk.ledger.generations, talk.ledger.tokens) == (2, 6)
    assert (talk.ledger.wrong_tokens, talk.ledger.lost_tokens) == (0, 0)


def test_each_wrong_token_and_each_one_too_many_counts() -> None:
    talk = Talk()
    talk.generation(5, 6, 7)
    talk.generation(5, 9, 7)
    talk.generation(5, 6, 7, 8)
    assert (talk.ledger.wrong_tokens, talk.ledger.lost_tokens) == (2, 0)


def test_tokens_that_never_came_are_lost() -> None:
    talk = Talk()
    talk.generation(5, 6, 7)
    talk.generation(5)
    assert talk.ledger.lost_tokens == 2
    # In the answer, but not told while it went on.
    asked = talk.lane.begin()
    talk.lane.hear({"id": asked["id"], "done": {"tokens": [5, 6, 7]}}, talk.now)
    assert talk.ledger.lost_tokens == 5


def test_an_answer_that_is_not_what_was_told_is_wrong() -> None:
    talk = Talk()
    talk.generation(5, 6, 7)
    asked = talk.lane.begin()
    for token in (5, 6, 7):
        talk.lane.hear({"id": asked["id"], "token": token}, talk.now)
    talk.lane.hear({"id": asked["id"], "done": {"tokens": [5, 9]}}, talk.now)
    assert (talk.ledger.wrong_tokens, talk.ledger.lost_tokens) == (1, 1)


def test_the_undisturbed_generation_is_held_to_what_was_asked_for() -> None:
    """One that always loses its last token would else be none the worse for it."""
    talk = Talk(new_tokens=4)
    talk.generation(5, 6, 7)
    assert talk.ledger.lost_tokens == 1
    talk.generation(5, 6, 7)
    assert talk.ledger.lost_tokens == 2
    talk = Talk(new_tokens=3)
    asked = talk.lane.begin()
    for token in (5, 6):
        talk.lane.hear({"id": asked["id"], "token": token}, talk.now)
    talk.lane.hear({"id": asked["id"], "done": {"tokens": [5, 6, 7]}}, talk.now)
    assert talk.ledger.lost_tokens == 1


def test_the_undisturbed_generation_tells_what_it_answers_with() -> None:
    talk = Talk()
    asked = talk.lane.begin()
    for token in (5, 9, 7):
        talk.lane.hear({"id": asked["id"], "token": token}, talk.now)
    talk.lane.hear({"id": asked["id"], "done": {"tokens": [5, 6, 7]}}, talk.now)
    assert talk.ledger.wrong_tokens == 1


def test_a_generation_goes_with_its_client_and_late_lines_of_it_are_nobodys() -> None:
    talk = Talk()
    talk.generation(5, 6, 7)
    talk.generation(5, done=False)
    talk.lane.lose_client()
    talk.lane.lose_client()
    assert (talk.ledger.begun_again, talk.ledger.lost_tokens) == (1, 0)
    talk.lane.hear({"id": "lane0.2", "token": 9}, talk.now)
    talk.generation(5, 6, 7)
    talk.lane.hear({"id": "lane0.2", "done": {"tokens": []}}, talk.now)
    assert (talk.ledger.wrong_tokens, talk.ledger.lost_tokens) == (0, 0)


def test_an_error_is_kept_and_ends_the_generation() -> None:
    talk = Talk()
    asked = talk.lane.begin()
    talk.lane.hear({"id": asked["id"], "error": "Busy", "message": "full"}, talk.now)
    assert talk.ledger.errors == ["Busy: full"]
    assert not talk.lane.is_running


def test_the_longest_wait_is_that_since_the_fault() -> None:
    talk = Talk()
    talk.generation(5, 6, 7, every_s=3.0)
    talk.lane.watch_from(talk.now - 1.0)
    assert talk.lane.tokens_since == 1
    talk.generation(5, 6, every_s=0.5, done=False)
    assert talk.lane.longest_wait(talk.now) == 1.0
    assert talk.lane.longest_wait(talk.now + 2.0) == 2.0


def test_requests_are_drawn_and_every_other_one_is_sampled() -> None:
    drawn = requests(4, 50, Random(3))
    assert drawn == requests(4, 50, Random(3))
    assert [one["sampling"].get("seed") for one in drawn] == [None, 1, None, 3]
    assert all(0 <= token < 50 for one in drawn for token in one["tokens"])
