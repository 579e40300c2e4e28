"""Steps of serving and slices of training share a thread: neither waits long, neither starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedsea_mq.serving.turns import Turns

SECONDS = st.floats(0.001, 1.0)


def test_a_slice_runs_at_once_where_no_step_is_ready() -> None:
    turns = Turns()
    for _ in range(5):
        assert turns.slice_may_run(step_ready=False)
        turns.slice_took(10.0)


def test_of_equal_length_they_alternate() -> None:
    turns, order = Turns(), ""
    for _ in range(8):
        if turns.slice_may_run(step_ready=True):
            turns.slice_took(0.01)
            order += "t"
        else:
            turns.step_took(0.01)
            order += "s"
    assert order == "stststst"


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=50, max_size=50), st.booleans())
def test_while_both_are_ready_nobody_waits_longer_than_the_others_last_turn(
    lengths: list[tuple[float, float]], alone_before: bool
) -> None:
    turns = Turns()
    if alone_before:  # however long slices had the thread to themselves
        turns.slice_took(100.0)
        turns.step_took(0.5)
    spent, last_step, last_slice, run = {"step": 0.0, "slice": 0.0}, 0.5, 100.0, 0.0
    before = ""
    for step_s, slice_s in lengths:
        now = "slice" if turns.slice_may_run(step_ready=True) else "step"
        run = run if now == before else 0.0
        if now == "slice":
            # Slices in a row began within the time that the last step took,
            assert run <= last_step
            turns.slice_took(slice_s)
            last_slice = slice_s
        else:
            # and steps in a row within that of the last slice.
            assert run <= last_slice
            turns.step_took(step_s)
            last_step = step_s
        took = slice_s if now == "slice" else step_s
        run, before = run + took, now
        spent[now] += took
    if not alone_before:
        assert abs(spent["step"] - spent["slice"]) <= 2.0
