"""Which of the trunk's blocks a node serves, by what `trunk.blocks` says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.errors import ConfigError, IllegalCut
from fedsea_mq.model.partition import Cut, trunk_blocks
from fedsea_mq.settings import Settings
from nodes.trunk.engine import load

CUT, TOTAL = Cut(2, 1), 12


def test_without_a_word_it_is_the_whole_trunk() -> None:
    assert trunk_blocks(CUT, TOTAL, None) == range(2, 11)


def test_blocks_are_named_from_the_models_first_the_last_included() -> None:
    assert trunk_blocks(CUT, TOTAL, "2-4") == range(2, 5)
    assert trunk_blocks(CUT, TOTAL, "10-10") == range(10, 11)


@pytest.mark.parametrize("asked", ["1-4", "9-11", "5-4", "0/3", "4/3", "1/10", "1/0"])
def test_what_is_not_of_the_trunk_is_refused(asked: str) -> None:
    with pytest.raises(IllegalCut, match="blocks 2 to 10"):
        trunk_blocks(CUT, TOTAL, asked)


@given(st.integers(1, 40), st.data())
def test_even_runs_are_the_whole_trunk_in_order_and_differ_by_one_block_at_most(
    blocks: int, data: st.DataObject
) -> None:
    runs = data.draw(st.integers(1, blocks))
    total = blocks + CUT.head_blocks + CUT.tail_blocks
    found = [trunk_blocks(CUT, total, f"{number}/{runs}") for number in range(1, runs + 1)]
    assert [block for run in found for block in run] == list(range(2, 2 + blocks))
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize("asked", ["4", "all", "1-", "-1-3", "1:2", "1/2/3", ""])
def test_what_says_no_blocks_is_a_wrong_setting(asked: str) -> None:
    with pytest.raises(ConfigError, match=r"trunk\.blocks"):
        Settings().replace(trunk={"blocks": asked})


def test_stages_are_for_up_and_blocks_for_a_node() -> None:
    with pytest.raises(ConfigError, match=r"as with trunk\.blocks=1/2"):
        load(Settings().replace(trunk={"stages": 2}))
    both = Settings().replace(trunk={"blocks": "1/2", "stages": 2})
    assert load(both).offer.stage.stop == 3
    with pytest.raises(ConfigError, match=r"set trunk\.blocks to null"):
        LocalSystem(both)
