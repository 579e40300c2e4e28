"""The audit's report: the strongest attack of each setting, and what may be recommended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fedsea_mq.cli.audit.grid import PAPER

Row = Mapping[str, Any]
# Defence, cut and sigma.
_Setting = tuple[str, str, float]
# Reads what the trunk computed, not what it received: no noise on the way in is against it.
_OF_OUTPUTS: Final = "public tail on outputs"
# A setting is as useful as another within so much of the mean score.
_EQUAL: Final = 0.01
UNSAID: Final = "Nothing is recommended: tasks score nothing at any setting, noise or not."
# Where so much of a prompt is read, the rest can be guessed.
_HIDES_NOTHING: Final = 0.9


def _setting(row: Row) -> _Setting:
    return row["defence"], row["cut"], row["sigma"]


def strongest(rows: Sequence[Row]) -> list[Row]:
    """Of each setting the attack on what was received that recovers most of the prompt."""
    best: dict[_Setting, Row] = {}
    for row in rows:
        if row["attack"] == _OF_OUTPUTS:
            continue
        here = best.setdefault(_setting(row), row)
        if row["token_recovery"] > here["token_recovery"]:
            best[_setting(row)] = row
    return list(best.values())


def recommended(rows: Sequence[Row]) -> Row | None:
    """Of the settings as useful as the paper's, the one of which least is recovered.

    Without the paper's setting among the rows: as useful as the best. Of equals, the one with most
    noise. None if the tasks score nothing at any setting: then nothing says what noise costs.
    """
    best = strongest(rows)
    if not any(row["utility"] for row in best):
        return None
    paper = [row["utility"] for row in best if row["defence"] == PAPER]
    enough = (max(paper) if paper else max(row["utility"] for row in best)) - _EQUAL
    useful = [row for row in best if row["utility"] >= enough]
    return min(useful, key=lambda row: (row["token_recovery"], row["secrets"], -row["sigma"]))


def in_words(row: Row) -> str:
    """What a setting risks, in a sentence or two."""
    risk = (
        f"At cut {row['cut']} with sigma {row['sigma']:.3g} ({row['sigma_over_head_rms']:.2f} of "
        f"the head output's RMS; {row['defence']}), a server with {row['knowledge']} recovers "
        f"{row['token_recovery']:.0%} of the prompt's tokens and {row['secrets']:.0%} of the "
        f"secrets ({row['attack']}), where tasks score {row['utility']:.1%}."
    )
    if row["token_recovery"] < _HIDES_NOTHING:
        return risk
    return f"{risk} Nothing measured that is as useful hides the prompt from such a server."


def report(rows: Sequence[Row], beside: Mapping[str, Any]) -> dict[str, Any]:
    """The report as JSON; `beside` is what is not of a setting, as `audit_beside` tells it."""
    chosen = recommended(rows)
    return {
        "grid": [{**row, "sigma_unit": "standard deviation of each element"} for row in rows],
        "strongest": [_named(row) for row in strongest(rows)],
        "recommended": None if chosen is None else {**_named(chosen), "risk": in_words(chosen)},
        "epsilon": _epsilons(rows),
        **beside,
    }


def _epsilons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each setting, for one prompt sent once; null where none can be said, and why."""
    settings = {_setting(row): row["privacy"] for row in rows}
    return [
        {"defence": defence, "cut": cut, "sigma": sigma, **privacy}
        for (defence, cut, sigma), privacy in settings.items()
    ]


def _named(row: Row) -> dict[str, Any]:
    kept = ("fingerprint", "defence", "cut", "sigma", "sigma_over_head_rms", "attack", "knowledge")
    return {name: row[name] for name in (*kept, "token_recovery", "secrets", "utility")}


def by_setting(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each setting, and what it is, for a title."""
    settings: dict[_Setting, list[Row]] = {}
    for row in rows:
        settings.setdefault(_setting(row), []).append(row)
    for (defence, cut, _), here in settings.items():
        first = here[0]
        yield (
            f"cut {cut}, {defence}, {first['sigma_over_head_rms']:.2f} of RMS: tasks score "
            f"{first['utility']:.1%}, guessing finds {first['random_baseline']:.1%}",
            here,
        )


COLUMNS: Final = ("attack", "tokens", "95 %", "content", "secrets", "answer")


def cells(row: Row) -> tuple[str, ...]:
    """What an attack recovered, for people; see `COLUMNS`."""
    low, high = row["ci"]
    more = row["knowledge"].partition(" and the ")[2]
    return (
        f"{row['attack']} ({more} known)" if more else row["attack"],
        f"{row['token_recovery']:.1%}",
        f"{low:.0%} to {high:.0%}",
        f"{row['content_recovery']:.1%}",
        f"{row['secrets']:.0%}",
        "-" if row["answer_recovery"] is None else f"{row['answer_recovery']:.0%}",
    )


TRAINING: Final = (
    "attack",
    "after steps",
    "noise/RMS",
    "gradient noise",
    "answer's tokens",
    "95 %",
    "all tokens",
)


def training_cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """What was recovered from training, for people; see `TRAINING`."""
    for row in rows:
        low, high = row["ci"]
        yield (
            row["attack"],
            f"{row['after_steps']}",
            f"{row['noise']:.2g}",
            f"{row['gradient_noise']:g}",
            f"{row['label_recovery']:.1%}",
            f"{low:.0%} to {high:.0%}",
            f"{row['token_recovery']:.1%}",
        )
