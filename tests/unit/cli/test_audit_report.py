"""Which setting an audit recommends: as useful as the paper's, and of those the least readable."""

from __future__ import annotations

from typing import Any

import pytest

from fedsea_mq.cli.audit.grid import ISOTROPIC, PAPER
from fedsea_mq.cli.audit.report import recommended, strongest


def row(defence: str, sigma: float, *, read: float, useful: float) -> dict[str, Any]:
    return {
        "defence": defence,
        "cut": "1+1",
        "sigma": sigma,
        "attack": "vocabulary matching",
        "token_recovery": read,
        "secrets": read,
        "utility": useful,
    }


BARE = row(ISOTROPIC, 0.0, read=1.0, useful=1.0)
PAPERS = row(PAPER, 0.4, read=0.9, useful=0.9)
HEAVY = row(ISOTROPIC, 4.0, read=0.3, useful=0.5)


@pytest.mark.parametrize(
    ("rows", "sigma"),
    [
        ([BARE, PAPERS, HEAVY], 0.4),  # without noise is more useful, and read whole
        ([BARE, PAPERS, row(ISOTROPIC, 1.0, read=0.8, useful=0.895)], 1.0),  # equal, to 0.01
        ([BARE, HEAVY], 0.0),  # without the paper's, the most useful is the measure
        ([PAPERS, row(PAPER, 0.6, read=0.9, useful=0.9)], 0.6),  # of equals, the most noise
    ],
)
def test_of_settings_as_useful_as_the_papers_the_least_readable(
    rows: list[dict[str, Any]], sigma: float
) -> None:
    found = recommended(rows)
    assert found is not None
    assert found["sigma"] == sigma


def test_nothing_is_recommended_where_tasks_score_nothing() -> None:
    assert recommended([{**BARE, "utility": 0.0}, {**HEAVY, "utility": 0.0}]) is None


def test_a_setting_is_judged_by_its_strongest_attack_on_what_was_received() -> None:
    weaker = {**HEAVY, "attack": "decoder", "token_recovery": 0.2}
    outputs = {**HEAVY, "attack": "public tail on outputs", "token_recovery": 0.0}
    assert strongest([outputs, weaker, HEAVY]) == [HEAVY]
