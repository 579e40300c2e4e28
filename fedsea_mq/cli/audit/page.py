"""The audit's report as a page for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fedsea_mq.cli.audit.report import (
    COLUMNS,
    TRAINING,
    UNSAID,
    Row,
    by_setting,
    cells,
    strongest,
    training_cells,
)

_UTILITY = ("tasks", "agreement", "perplexity")
_SETTING = ("defence", "cut", "noise/RMS", "strongest attack", "knows", "tokens", *_UTILITY)


def page(told: Mapping[str, Any], rows: Sequence[Row], plots: Iterable[str]) -> str:
    """Markdown: the recommendation, the strongest attack of each setting, then everything.

    `told` is the report as JSON, `rows` its grid.
    """
    chosen = told["recommended"]
    risk = UNSAID if chosen is None else chosen["risk"]
    lines = [
        "# What a trunk can read",
        "",
        f"**Recommended, of what was measured:** {risk}",
        "",
        "Prompts were sent through a live system, and what its trunk node received was attacked. "
        "Tokens are those of prompts; the interval is a bootstrap over texts. Guessing draws "
        "tokens as often as text of the kind has them. Perplexity is of the right answers, and "
        "agreement the share of their tokens at which the model predicts what it does without "
        "noise. No claim is made beyond these attacks.",
        "",
        *(f"![{name}]({name})" for name in plots),
        "",
        "## The strongest attack on what was received, by setting",
        "",
        *_table(_SETTING, (_setting(row) for row in strongest(rows))),
        "",
        "## Training",
        "",
        "One member trains, from the base model on; the gradient comes back from its tail. "
        "Gradient noise is in RMS of the gradient. What the attacker has is the base model's tail, "
        "which after some steps is not the member's any more. Each answer ends with a drawn "
        "number.",
        "",
        *_table(TRAINING, training_cells(told["training"])),
        "",
        "## Lengths alone",
        "",
        _lengths("their length in tokens", told["lengths"]),
        _lengths("with that of their answer it", told["lengths_with_answers"]),
        "",
        "## All attacks",
        "",
        *_all(rows),
    ]
    return "\n".join(lines)


def _lengths(which: str, told: Mapping[str, Any]) -> str:
    return (
        f"Of {told['texts']} texts of the kind, {which} singles out "
        f"{told['singled_out']:.0%}, and tells {told['bits']:.1f} of the {told['of_bits']:.1f} "
        "bits that name one. Noise does not change that."
    )


def _all(rows: Sequence[Row]) -> Iterator[str]:
    for title, here in by_setting(rows):
        yield f"### {title[0].upper()}{title[1:]}"
        yield ""
        yield from _table(("knows", *COLUMNS), ((row["knowledge"], *cells(row)) for row in here))
        yield ""


def _setting(row: Row) -> tuple[str, ...]:
    return (
        row["defence"],
        row["cut"],
        f"{row['sigma_over_head_rms']:.2f}",
        row["attack"],
        row["knowledge"],
        f"{row['token_recovery']:.1%}",
        f"{row['utility']:.1%}",
        f"{row['agreement']:.1%}",
        f"{row['perplexity']:.2f}",
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
