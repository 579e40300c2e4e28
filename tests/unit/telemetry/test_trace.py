"""Ids of traces: W3C's header, what an OPEN frame carries, and whose trace a request is in."""

from __future__ import annotations

import os
import re

import pytest

from fedsea_mq.telemetry.trace import CALLER, RequestTrace, TraceContext, trace_fields

TRACE, SPAN = bytes(range(16)), bytes(range(8))
HEADER = f"00-{TRACE.hex()}-{SPAN.hex()}-01"


@pytest.mark.parametrize("header", [HEADER, f" {HEADER} ", HEADER[:-1] + "0", f"01{HEADER[2:]}-x"])
def test_a_valid_header_is_read(header: str) -> None:
    assert TraceContext.from_traceparent(header) == TraceContext(TRACE, SPAN)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "hello",
        HEADER[:-1],
        HEADER.upper(),
        f"ff{HEADER[2:]}",
        f"{HEADER}-more",
        f"00-{'0' * 32}-{SPAN.hex()}-01",
        f"00-{TRACE.hex()}-{'0' * 16}-01",
        f"00-{TRACE.hex()[1:]}g-{SPAN.hex()}-01",
        HEADER.replace("-", "_"),
    ],
)
def test_any_other_header_is_none(header: str) -> None:
    assert TraceContext.from_traceparent(header) is None


def test_what_goes_over_the_wire_comes_back_and_so_does_the_header() -> None:
    context = TraceContext(TRACE, SPAN)
    assert TraceContext.from_wire(context.on_wire) == context
    assert TraceContext.from_traceparent(context.traceparent) == context
    assert len(context.on_wire) == 24


def test_without_a_caller_each_request_begins_a_trace_of_its_own() -> None:
    first, second = (RequestTrace.begin(os.urandom) for _ in range(2))
    assert first.caller is None
    assert first.own.trace_id != second.own.trace_id


def test_a_request_goes_on_with_its_callers_trace_and_what_is_below_with_its_own() -> None:
    caller = TraceContext(TRACE, SPAN)
    token = CALLER.set(caller)
    try:
        request = RequestTrace.begin(os.urandom)
    finally:
        CALLER.reset(token)
    assert (request.own.trace_id, request.caller) == (TRACE, caller)
    assert request.own.span_id != SPAN
    below = request.below(os.urandom)
    assert (below.own.trace_id, below.caller) == (TRACE, request.own)


def test_a_log_line_has_the_trace_id_alone() -> None:
    assert trace_fields(None) == {}
    fields = trace_fields(TRACE + SPAN)
    assert fields == {"trace_id": TRACE.hex()}
    assert re.fullmatch("[0-9a-f]{32}", fields["trace_id"])
