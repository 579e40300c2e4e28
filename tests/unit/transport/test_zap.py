"""Questions about who connects, as ZeroMQ puts them, and what it is told."""

from __future__ import annotations

import pytest

from fedsea_mq.errors import MalformedFrame
from fedsea_mq.transport.zap import Question, Verdict

KEY = bytes(range(32))
ASKED = [b"asker", b"", b"1.0", b"7", b"fedsea", b"127.0.0.1", b"", b"CURVE", KEY]


def test_a_key_is_one_that_curve_has_proven_and_no_other_mechanism() -> None:
    assert Question.read(ASKED).key == KEY
    for mechanism, credentials in ((b"NULL", []), (b"PLAIN", [b"user", KEY]), (b"NULL", [KEY])):
        assert Question.read([*ASKED[:7], mechanism, *credentials]).key is None


@pytest.mark.parametrize(
    "parts", [ASKED[:7], [*ASKED, *[b""] * 4], [*ASKED[:2], b"2.0", *ASKED[3:]]]
)
def test_what_is_no_question_is_not_answered(parts: list[bytes]) -> None:
    with pytest.raises(MalformedFrame):
        Question.read(parts)


def test_an_answer_goes_to_who_asked_under_the_number_of_the_question() -> None:
    question = Question.read(ASKED)
    assert question.answer(Verdict(user_id="ab")) == [
        *(b"asker", b"", b"1.0", b"7", b"200", b"", b"ab", b""),
    ]
    assert question.answer(Verdict(refusal="no key")) == [
        *(b"asker", b"", b"1.0", b"7", b"400", b"no key", b"", b""),
    ]
    later = Verdict(refusal="enough connections", is_final=False)
    assert question.answer(later)[4] == b"300"
