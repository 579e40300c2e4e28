"""One attack after the other, and what honest clients notice of them."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from fedsea_mq.cli.chaos.attacks.besieged import Besieged
from fedsea_mq.cli.chaos.attacks.catalogue import ATTACKS, Attack, Succeeded
from fedsea_mq.cli.chaos.attacks.meddling import tampered_ciphertext
from fedsea_mq.cli.output import console, print_table, progress_bar
from fedsea_mq.settings import Settings

_BEHIND_ALL: Final = 19
_TAMPERED: Final = "tampered ciphertext at the broker"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attack.

    `p95_ratio` is the 95th percentile of honest clients' times from token to token while it went
    on, over that right before; None where there were none.
    """

    name: str
    outcome: str
    held: bool
    p95_ratio: float | None = None
    rss_growth: dict[str, float] | None = None


@dataclass(slots=True)
class Withstood:
    """All attacks."""

    outcomes: list[Outcome]
    wrong_tokens: int

    @property
    def held(self) -> bool:
        """Whether none succeeded."""
        return all(one.held for one in self.outcomes) and not self.wrong_tokens

    def as_json(self) -> list[dict[str, Any]]:
        """As the report tells it."""
        return [asdict(one) for one in self.outcomes]


async def withstand(settings: Settings, seconds: float) -> Withstood:
    """Attack for so many seconds each.

    The attacker, this process, takes the time that the system leaves: it stands for another
    machine. So it stays behind all others from here on.
    """
    outcomes = []
    with progress_bar() as progress:
        task = progress.add_task("attacks", total=len(ATTACKS) + 1)
        async with Besieged(settings.replace(broker={"max_part_mb": 1})) as siege:
            os.nice(_BEHIND_ALL)
            for name, attack in ATTACKS.items():
                progress.update(task, description=f"attacks: {name}")
                outcomes.append(await _attack(siege, name, attack, seconds))
                progress.advance(task)
        progress.update(task, description=f"attacks: {_TAMPERED}")
        outcomes.append(await _alone(settings))
        progress.advance(task)
    return Withstood(outcomes, siege.ledger.wrong_tokens)


async def _attack(siege: Besieged, name: str, attack: Attack, seconds: float) -> Outcome:
    siege.watch()
    rss = siege.rss_bytes
    await asyncio.sleep(seconds)
    alone_s = siege.token_p95_s
    siege.watch()
    began = time.monotonic()
    try:
        outcome, held = await attack(siege, seconds), True
        while time.monotonic() < began + seconds:
            outcome = await attack(siege, seconds)
    except Succeeded as error:
        outcome, held = f"SUCCEEDED: {error}", False
    ratio = siege.token_p95_s / alone_s
    growth = {name: round(now / rss[name], 3) for name, now in siege.rss_bytes.items()}
    return Outcome(name, outcome, held, round(ratio, 3), growth)


async def _alone(settings: Settings) -> Outcome:
    try:
        return Outcome(_TAMPERED, await tampered_ciphertext(settings), held=True)
    except Succeeded as error:
        return Outcome(_TAMPERED, f"SUCCEEDED: {error}", held=False)


def show(withstood: Withstood) -> None:
    """For people."""
    print_table(
        "attacks, and the honest clients' p95 from token to token over that right before",
        ("attack", "outcome", "p95"),
        (
            (one.name, one.outcome, "" if one.p95_ratio is None else f"{one.p95_ratio:.2f} x")
            for one in withstood.outcomes
        ),
    )
    if withstood.wrong_tokens:
        console.print(f"{withstood.wrong_tokens} wrong tokens")
