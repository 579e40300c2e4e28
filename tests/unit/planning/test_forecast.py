"""Forecasts against numbers worked out by hand, and what must hold of any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.errors import IllegalCut
from fedsea_mq.load.plan import Link
from fedsea_mq.model.partition import Cut
from fedsea_mq.planning.forecast import Demand
from tests.unit.planning.speeds import GB, LLAMA_2_7B, forecaster, speed

BLOCK_WEIGHTS = 4 * 4096**2 + 3 * 4096 * 11008
SIZES = st.integers(1, 2000)


def test_a_token_costs_what_reading_computing_and_the_way_cost() -> None:
    said = forecaster().forecast(Cut(1, 1))
    context = 100 + (11 - 2) / 2
    block_s = 2 * BLOCK_WEIGHTS / (10 * GB)
    block_s += 2 * BLOCK_WEIGHTS / (100 * GB) + context * 2 * 4096 * 2 / (10 * GB)
    lm_head_s = 2 * 32_000 * 4096 / (10 * GB)
    by_hand = 32 * block_s + lm_head_s + 4096 / GB + 0.001 + 0.002
    assert said.tpot_s == pytest.approx(by_hand)


def test_a_first_token_costs_the_opening_and_the_prompt() -> None:
    said = forecaster().forecast(Cut(1, 1))
    seen = 100 * 101 / 2
    block_s = 2 * BLOCK_WEIGHTS / (10 * GB) + 100 * 2 * BLOCK_WEIGHTS / (100 * GB)
    block_s += 4 * 4096 * seen / (100 * GB)
    lm_head_s = 2 * 32_000 * 4096 / (10 * GB)
    by_hand = 0.003 + 32 * block_s + lm_head_s + 100 * 4096 / GB + 0.001 + 0.002
    assert said.ttft_s == pytest.approx(by_hand)


def test_a_link_costs_its_delay_both_ways_and_its_bytes() -> None:
    near, far = (
        forecaster(link=link).forecast(Cut(1, 1)) for link in (Link(), Link(delay_ms=25, mbps=1))
    )
    on_wire_s = (near.token.up + near.token.down) * 8 / 1e6
    assert far.tpot_s - near.tpot_s == pytest.approx(0.05 + on_wire_s)
    assert far.ttft_s - near.ttft_s > 2 * 0.05 + 200 * 8192 * 8 / 1e6


def test_a_node_has_room_for_what_its_memory_holds() -> None:
    said = forecaster(demand=Demand(1000, 25), kv_bytes=3 * 30 * 16_384 * 1024).forecast(Cut(1, 1))
    assert said.node_sessions == 3
    none = forecaster(demand=Demand(1000, 25), kv_bytes=1 << 20).forecast(Cut(1, 1))
    assert none.node_sessions == 0
    assert none.node_tokens_per_s == 0
    assert none.cost_per_million(2.0) is None


def test_a_million_tokens_cost_the_hours_that_they_take() -> None:
    said = forecaster().forecast(Cut(1, 1))
    assert said.cost_per_million(3.6) == pytest.approx(1000 / said.node_tokens_per_s)


def test_a_client_holds_its_process_its_weights_and_what_loading_them_takes() -> None:
    block = 2 * (BLOCK_WEIGHTS + 2 * 4096)
    embedding = 2 * 32_000 * 4096
    weights = 2 * block + 2 * embedding + 2 * 4096
    said = forecaster().forecast(Cut(1, 1))
    assert said.client_bytes == 500_000_000 + weights + embedding


def test_a_client_of_a_long_context_holds_its_keys_and_values_instead() -> None:
    long, longer = (forecaster(demand=Demand(n, 11)).forecast(Cut(9, 9)) for n in (3900, 4000))
    assert longer.client_bytes - long.client_bytes == 100 * 18 * 16_384


def test_a_trunk_holds_the_keys_and_values_of_its_sessions() -> None:
    one, three = (forecaster(demand=Demand(100, 11, n)).forecast(Cut(1, 1)) for n in (1, 3))
    assert three.trunk_bytes - one.trunk_bytes == 2 * 110 * 30 * 16_384


def test_a_cut_without_a_trunk_is_no_cut() -> None:
    with pytest.raises(IllegalCut):
        forecaster().forecast(Cut(16, 16))


cuts = st.tuples(st.integers(0, 15), st.integers(0, 15)).map(lambda pair: Cut(*pair))


@settings(max_examples=60, deadline=None)
@given(cut=cuts, prompt=SIZES, new=st.integers(2, 60), more=st.integers(1, 500))
def test_more_to_do_never_costs_less(cut: Cut, prompt: int, new: int, more: int) -> None:
    base = forecaster(demand=Demand(prompt, new)).forecast(cut)
    longer = forecaster(demand=Demand(prompt + more, new)).forecast(cut)
    assert longer.tpot_s >= base.tpot_s
    assert longer.request.up > base.request.up
    assert longer.request.down >= base.request.down
    assert longer.client_bytes >= base.client_bytes
    assert longer.node_sessions <= base.node_sessions
    shared = forecaster(demand=Demand(prompt, new, 1 + more)).forecast(cut)
    assert shared.shared_tpot_s >= base.shared_tpot_s
    assert shared.tpot_s == base.tpot_s
    assert shared.node_tokens_per_s >= base.node_tokens_per_s - 1e-9


@settings(max_examples=60, deadline=None)
@given(cut=cuts)
def test_deeper_cuts_move_memory_from_the_trunk_to_the_client(cut: Cut) -> None:
    here = forecaster().forecast(cut)
    for deeper in (
        Cut(cut.head_blocks + 1, cut.tail_blocks),
        Cut(cut.head_blocks, cut.tail_blocks + 1),
    ):
        said = forecaster().forecast(deeper)
        assert said.client_bytes > here.client_bytes
        assert said.trunk_bytes < here.trunk_bytes
        assert said.node_sessions >= here.node_sessions


@settings(max_examples=40, deadline=None)
@given(cut=cuts, factor=st.floats(1.0, 50.0))
def test_a_faster_trunk_is_never_slower(cut: Cut, factor: float) -> None:
    quick = speed(
        weight_bytes_per_s=10 * GB * factor,
        step_flops_per_s=100 * GB * factor,
        chunk_flops_per_s=100 * GB * factor,
    )
    slow, fast = forecaster().forecast(cut), forecaster(trunk=quick).forecast(cut)
    assert fast.tpot_s <= slow.tpot_s
    assert fast.ttft_s <= slow.ttft_s


def test_a_window_bounds_what_a_step_reads() -> None:
    windowed = replace(LLAMA_2_7B, window=64)
    assert windowed.attention_flops(1, 1000) == 4 * 4096 * 64
    near, far = (
        forecaster(windowed, demand=Demand(prompt, 11)).forecast(Cut(1, 1)) for prompt in (100, 900)
    )
    assert near.tpot_s == pytest.approx(far.tpot_s)
