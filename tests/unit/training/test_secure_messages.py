"""Secure aggregation's messages: bounded, and what is not exactly one is refused."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import lz4.block
import msgpack
import pytest
from pydantic import ValidationError

from fedsea_mq.errors import AdapterError, LimitExceeded, MalformedFrame
from fedsea_mq.training.adapter_layout import AdapterLayout
from fedsea_mq.training.round_plan import MAX_CLIENTS
from fedsea_mq.training.secure_aggregation import messages as m
from tests.unit.training.secure_rounds import LAYOUT, terms

CONTEXT = bytes(range(32))
EVERYBODY = range(1, MAX_CLIENTS + 1)
DRAWN = random.Random(0).randbytes

LARGEST: list[m.Message] = [
    terms(MAX_CLIENTS, MAX_CLIENTS),
    m.Roster([f"{n:x<64}" for n in EVERYBODY]),
    m.Keys(CONTEXT, DRAWN(32), DRAWN(32)),
    m.KeyList(CONTEXT, [m.MemberKeys(n, DRAWN(32), DRAWN(32)) for n in EVERYBODY]),
    m.Shares(CONTEXT, DRAWN(32), [m.Box(n, DRAWN(m.BOX_BYTES)) for n in EVERYBODY]),
    m.ShareList(CONTEXT, [m.Box(n, DRAWN(m.BOX_BYTES)) for n in EVERYBODY]),
    m.MaskedUpdate(CONTEXT),
    m.UnmaskRequest(CONTEXT, list(EVERYBODY)),
    m.Reveal(
        CONTEXT,
        [m.Share(n, DRAWN(33)) for n in EVERYBODY],
        [m.Share(n, DRAWN(33)) for n in EVERYBODY],
    ),
]


@pytest.mark.parametrize("message", LARGEST, ids=lambda message: type(message).__name__)
class TestEveryMessage:
    def test_the_largest_of_its_kind_fits_and_reads_as_it_was_written(
        self, message: m.Message
    ) -> None:
        part = m.encode_message(message)
        assert len(part) <= m.MAX_MESSAGE_BYTES
        assert m.decode_message(type(message), part) == message

    def test_a_missing_an_unknown_or_a_mistyped_field_is_refused(self, message: m.Message) -> None:
        fields = unpacked(message)
        for name in fields:
            with pytest.raises(MalformedFrame, match=name):
                read(message, {k: v for k, v in fields.items() if k != name})
            for wrong in (None, "text", -1, b"short", 1.5, {"a": 1}, [["x"]]):
                if type(wrong) is not type(fields[name]):
                    with pytest.raises(MalformedFrame):
                        read(message, {**fields, name: wrong})
        with pytest.raises(MalformedFrame) as refused:
            read(message, {**fields, "hidden words": 1})
        assert "hidden words" not in str(refused.value)

    def test_changed_bytes_are_refused_or_another_message_and_nothing_worse(
        self, message: m.Message
    ) -> None:
        part, drawn = m.encode_message(message), random.Random(1)
        for _ in range(150):
            changed = bytearray(part)
            for _ in range(drawn.randint(1, 3)):
                changed[drawn.randrange(len(changed))] = drawn.randrange(256)
            try:
                m.decode_message(type(message), bytes(changed[: drawn.randint(1, len(changed))]))
            except (MalformedFrame, LimitExceeded):
                continue


def unpacked(message: m.Message) -> dict[str, Any]:
    part = m.encode_message(message)
    body = part[1:] if part[:1] == b"\0" else lz4.block.decompress(part[5:], 1 << 20)
    return msgpack.unpackb(body)


def read(message: m.Message, fields: dict[str, Any]) -> Any:
    return m.decode_message(type(message), b"\0" + msgpack.packb(fields))


class TestLists:
    @pytest.mark.parametrize("survivors", [[2, 1], [1, 1], [0, 1], [1, MAX_CLIENTS + 1], [True, 2]])
    def test_members_stand_once_in_rising_order(self, survivors: list[int]) -> None:
        fields = {"context": CONTEXT, "survivors": survivors}
        with pytest.raises(MalformedFrame, match="survivors"):
            read(m.UnmaskRequest(CONTEXT, [1]), fields)

    def test_more_members_than_there_can_be_are_refused(self) -> None:
        fields = {"context": CONTEXT, "survivors": list(range(1, MAX_CLIENTS + 2))}
        with pytest.raises(MalformedFrame):
            read(m.UnmaskRequest(CONTEXT, [1]), fields)

    def test_a_message_beyond_its_bound_is_refused_unread(self) -> None:
        with pytest.raises(LimitExceeded):
            m.decode_message(m.ShareList, bytes(m.MAX_MESSAGE_BYTES * 2))


class TestTerms:
    def test_any_other_term_is_another_context(self) -> None:
        agreed = terms()
        others = [
            replace(agreed, **{name: value})
            for name, value in {
                "round": 5,
                "attempt": 1,
                "nonce": b"\x01" * 16,
                "members": 4,
                "threshold": 4,
                "layout": "0" * 64,
                "elements": 1,
                "max_weight": 999,
                "max_abs": 8.5,
            }.items()
        ]
        assert len({one.context for one in (agreed, *others)}) == 10
        assert m.decode_message(m.Terms, m.encode_message(agreed)).context == agreed.context

    @pytest.mark.parametrize(
        "fields",
        [
            {"members": 6, "threshold": 3},
            {"members": 5, "threshold": 6},
            {"members": 1, "threshold": 1},
            {"members": MAX_CLIENTS + 1, "threshold": MAX_CLIENTS},
            {"max_abs": float("nan")},
            {"max_abs": float("inf")},
            {"max_abs": 0.0},
            {"max_weight": 0},
            {"elements": 0},
            {"nonce": bytes(15)},
        ],
        ids=str,
    )
    def test_unusable_terms_are_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            terms(**fields)
        with pytest.raises(MalformedFrame):
            read(terms(), {**unpacked(terms()), **fields})

    def test_terms_are_of_one_layout(self) -> None:
        terms().check(LAYOUT)
        with pytest.raises(AdapterError):
            terms().check(AdapterLayout.of({"w": (LAYOUT.elements,)}))
