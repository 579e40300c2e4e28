"""The audit's report: the strongest attack of each setting, and what may be recommended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fedsea_mq.cli.audit.grid import PAPER

Row = Mapping[str, Any]
# Reads what the trunk computed, not what it received: no noise on the way in is against it.
_OF_OUTPUTS: Final = "public tail on outputs"
# A setting is as useful as another within so much of the mean score.
_EQUAL: Final = 0.01


def strongest(rows: Sequence[Row]) -> list[Row]:
    """Of each setting the attack on what was received that recovers most of the prompt."""
    best: dict[tuple[str, str, float], Row] = {}
    for row in rows:
        if row["attack"] == _OF_OUTPUTS:
            continue
        key = (row["defence"], row["cut"], row["sigma"])
        if key not in best or row["token_recovery"] > best[key]["token_recovery"]:
            best[key] = row
    return list(best.values())


def recommended(rows: Sequence[Row]) -> Row | None:
    """Of the settings as useful as the paper's, the one of which least is recovered.

    Without the paper's setting among the rows: as useful as the best.
    """
    best = strongest(rows)
    if not best:
        return None
    paper = [row["utility"] for row in best if row["defence"] == PAPER]
    enough = (max(paper) if paper else max(row["utility"] for row in best)) - _EQUAL
    useful = [row for row in best if row["utility"] >= enough]
    return min(useful, key=lambda row: (row["token_recovery"], -row["utility"]))


def in_words(row: Row) -> str:
    """What a setting risks, as a sentence."""
    return (
        f"At cut {row['cut']} with sigma {row['sigma']:.3g} ({row['sigma_over_head_rms']:.2f} of "
        f"the head output's RMS; {row['defence']}), a server with {row['knowledge']} recovers "
        f"{row['token_recovery']:.0%} of the prompt's tokens and {row['secrets']:.0%} of the "
        f"secrets ({row['attack']}), where tasks score {row['utility']:.1%}."
    )


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """The report as JSON."""
    chosen = recommended(rows)
    return {
        "grid": [{**row, "sigma_unit": "standard deviation of each element"} for row in rows],
        "strongest": [_named(row) for row in strongest(rows)],
        "recommended": None if chosen is None else {**_named(chosen), "risk": in_words(chosen)},
        "epsilon": None,
    }


def _named(row: Row) -> dict[str, Any]:
    kept = ("defence", "cut", "sigma", "sigma_over_head_rms", "attack", "knowledge")
    return {name: row[name] for name in (*kept, "token_recovery", "secrets", "utility")}


def table(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """One line a row, for people."""
    for row in rows:
        low, high = row["ci"]
        yield (
            row["attack"],
            row["cut"],
            f"{row['sigma_over_head_rms']:.2f}",
            f"{row['token_recovery']:.1%} ({low:.0%} to {high:.0%})",
            f"{row['content_recovery']:.1%}",
            f"{row['secrets']:.0%}",
            f"{row['answer_recovery']:.0%}",
            f"{row['random_baseline']:.1%}",
            f"{row['utility']:.1%}",
        )


COLUMNS: Final = (
    "attack",
    "cut",
    "noise/RMS",
    "tokens (95 %)",
    "content",
    "secrets",
    "answer",
    "guessing",
    "utility",
)
