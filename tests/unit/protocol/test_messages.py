"""Every body comes back as it was sent; every wrong field is refused, and not repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any, get_args

import msgpack
import pytest

from fedsea_mq.errors import LimitExceeded, MalformedFrame
from fedsea_mq.protocol import messages as m
from fedsea_mq.protocol import training_messages as t
from fedsea_mq.protocol.compression import pack
from fedsea_mq.protocol.messages import decode_body, encode_body
from tests.unit.protocol.bodies import BODIES, LOAD, NODE, SECRET, wrong_for

WITH_FIELDS = [body for body in BODIES if fields(body)]


def name(body: Any) -> str:
    return type(body).__name__


def refusal(body: type[Any], content: Any) -> str:
    with pytest.raises(MalformedFrame) as caught:
        decode_body(body, pack(msgpack.packb(content)))
    return str(caught.value)


def test_every_body_of_the_protocol_has_an_example_here() -> None:
    assert {type(body) for body in BODIES} == set(get_args(m.Body))


@pytest.mark.parametrize("body", BODIES, ids=name)
def test_a_body_comes_back_as_it_was_sent(body: Any) -> None:
    assert decode_body(type(body), encode_body(body)) == body


@pytest.mark.parametrize("body", BODIES, ids=name)
def test_given_an_unknown_field_then_it_is_refused_and_its_name_not_repeated(body: Any) -> None:
    said = refusal(type(body), {**asdict(body), SECRET: SECRET})
    assert SECRET not in said
    assert name(body) in said


@pytest.mark.parametrize("body", WITH_FIELDS, ids=name)
def test_given_a_missing_field_then_the_refusal_names_it(body: Any) -> None:
    whole = asdict(body)
    required = [f.name for f in fields(body) if repr(f.default).startswith("<dataclasses._MISS")]
    assert required
    for field in required:
        said = refusal(type(body), {key: whole[key] for key in whole if key != field})
        assert f"{field}: missing" in said


@pytest.mark.parametrize("body", WITH_FIELDS, ids=name)
def test_given_a_wrong_field_then_the_refusal_names_it_and_not_its_value(body: Any) -> None:
    for field in asdict(body):
        for value in wrong_for(name(body), field):
            said = refusal(type(body), {**asdict(body), field: value})
            assert field in said
            assert SECRET not in said


def nested(load: dict[str, Any]) -> Iterator[tuple[type[Any], dict[str, Any]]]:
    """The bodies that hold a load, with this one in it."""
    register = next(body for body in BODIES if isinstance(body, m.Register))
    report = next(body for body in BODIES if isinstance(body, m.StatusReport))
    yield m.Register, {**asdict(register), "load": load}
    yield m.StatusReport, {**asdict(report), "nodes": [{**asdict(NODE), "load": load}]}


def test_given_a_wrong_field_inside_a_nested_body_then_the_whole_is_refused() -> None:
    for field in asdict(LOAD):
        for value in wrong_for("Load", field):
            for body, content in nested({**asdict(LOAD), field: value}):
                said = refusal(body, content)
                assert "load" in said
                assert SECRET not in said


def test_given_an_unknown_field_inside_a_nested_body_then_the_whole_is_refused() -> None:
    for body, content in nested({**asdict(LOAD), SECRET: SECRET}):
        said = refusal(body, content)
        assert "load" in said
        assert SECRET not in said


@pytest.mark.parametrize("content", [None, 1, "map", b"map", [], [["cached", 5]], {1: 2}])
def test_given_anything_but_a_map_of_names_then_the_body_is_malformed(content: Any) -> None:
    refusal(m.ErrorNotice, content)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x81", b"\x81\xa1a", b"\x80\x80", b"\xd9\xff"])
def test_given_bytes_that_are_not_msgpack_then_the_body_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode_body(m.Nothing, pack(data))


def test_nothing_is_coerced() -> None:
    right = {"cached": 5, "returned": 1}
    assert decode_body(m.Result, pack(msgpack.packb(right))) == m.Result(cached=5, returned=1)
    for almost in (5.0, "5", True, b"5"):
        refusal(m.Result, {**right, "cached": almost})


def test_lists_may_be_as_long_as_their_bound_and_no_longer() -> None:
    register = asdict(next(body for body in BODIES if isinstance(body, m.Register)))
    ids = [number.to_bytes(16, "big") for number in range(m.MAX_SESSIONS_A_NODE)]
    full = {**register, "sessions": ids, "owners": ids}
    read = decode_body(m.Register, pack(msgpack.packb(full)))
    assert len(read.sessions) == m.MAX_SESSIONS_A_NODE
    refusal(m.Register, {**full, "sessions": [*ids, b"\xff" * 16]})

    report = asdict(next(body for body in BODIES if isinstance(body, m.StatusReport)))
    most = {**report, "nodes": [asdict(NODE)] * m.MAX_NODES}
    assert len(decode_body(m.StatusReport, pack(msgpack.packb(most))).nodes) == m.MAX_NODES
    refusal(m.StatusReport, {**most, "nodes": [asdict(NODE)] * (m.MAX_NODES + 1)})


@pytest.mark.parametrize(
    ("body", "field", "bound"),
    [
        (t.Forward, "lengths", t.MAX_SEQUENCES),
        (t.BeginRound, "members", t.MAX_MEMBERS),
        (t.EndRound, "counted", t.MAX_MEMBERS),
    ],
)
def test_so_are_those_of_training(body: type[Any], field: str, bound: int) -> None:
    right = asdict(next(one for one in BODIES if isinstance(one, body)))
    longest = [2**20 if field == "lengths" else f"{number:064}" for number in range(bound)]
    read = decode_body(body, pack(msgpack.packb({**right, field: longest})))
    assert getattr(read, field) == longest
    refusal(body, {**right, field: [*longest, 5 if field == "lengths" else "another"]})


@pytest.mark.parametrize("body", BODIES, ids=name)
def test_given_more_bytes_than_such_a_body_has_then_it_is_refused_unread(body: Any) -> None:
    listings = m.Register | m.StatusReport | t.Forward | t.BeginRound | t.EndRound
    limit = m.MAX_LISTING_BYTES if isinstance(body, listings) else m.MAX_BODY_BYTES
    with pytest.raises(LimitExceeded, match=f"at most {limit}"):
        decode_body(type(body), pack(b"\xc1" * (limit + 1)))


def test_the_longest_error_message_fits_in_a_body() -> None:
    notice = m.ErrorNotice(code="x" * 64, message="\N{GRINNING FACE}" * m.MAX_MESSAGE_CHARS)
    assert decode_body(m.ErrorNotice, encode_body(notice)) == notice
