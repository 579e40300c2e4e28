"""Many simulated seeds, and how `fedsea chaos` tells what came of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fedsea_mq.cli.chaos.seeds import simulate_all
from fedsea_mq.cli.chaos.simulated import Outcome, simulate
from fedsea_mq.cli.output import console, print_json, progress_bar

QUICK_SEEDS: Final = 200
# Violations that a report spells out.
_SPELT_OUT: Final = 20


@dataclass(slots=True)
class Simulated:
    """What came of many seeds."""

    seeds: int = 0
    broken: list[Outcome] = field(default_factory=list)
    events: int = 0
    virtual_s: float = 0.0
    took_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """One seed more."""
        self.seeds += 1
        self.events += outcome.events
        self.virtual_s += outcome.virtual_s
        if outcome.violations:
            self.broken.append(outcome)

    def as_json(self) -> dict[str, Any]:
        """As the report tells it; `violations` is the number of seeds that broke something."""
        return {
            "seeds": self.seeds,
            "violations": len(self.broken),
            "broken": [
                {"seed": one.seed, "what": one.violations[0]} for one in self.broken[:_SPELT_OUT]
            ],
            "events": self.events,
            "virtual_s": self.virtual_s,
            "took_s": self.took_s,
        }


def run_simulated(seeds: Sequence[int], jobs: int) -> Simulated:
    """Simulate these seeds."""
    done, began = Simulated(), time.monotonic()
    with progress_bar() as progress:
        task = progress.add_task("simulated seeds", total=len(seeds))
        for outcome in simulate_all(seeds, jobs):
            done.add(outcome)
            progress.advance(task)
    done.took_s = time.monotonic() - began
    return done


def show(simulated: Simulated) -> None:
    """For people."""
    console.print(
        f"simulated: {simulated.seeds} seeds, {simulated.events} events in "
        f"{simulated.virtual_s / 3600:.1f} virtual hours, {simulated.took_s:.0f} s; "
        f"{len(simulated.broken)} broke something"
    )
    for outcome in simulated.broken[:_SPELT_OUT]:
        console.print(f"  seed {outcome.seed}: {outcome.violations[0]}", soft_wrap=True)
    if simulated.broken:
        console.print(f"See what happened: fedsea chaos --seed {simulated.broken[0].seed}")


def repeat(seed: int, *, as_json: bool) -> bool:
    """Simulate one seed and print all that happened in it; whether all held."""
    outcome = simulate(seed, trace=True)
    if as_json:
        simulated = Simulated()
        simulated.add(outcome)
        print_json({"simulated": {**simulated.as_json(), "trace": list(outcome.lines)}})
        return not outcome.violations
    for line in outcome.lines:
        console.print(line, markup=False, soft_wrap=True)
    for violation in outcome.violations or ["nothing broke"]:
        console.print(violation, style="bold", markup=False, soft_wrap=True)
    return not outcome.violations
