"""`fedsea soak`: a steady load for long, and what every process holds more at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from fedsea_mq.cli.loadtest import LoadRun, run_load
from fedsea_mq.cli.output import progress_console
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.load.plan import Arrivals, Lengths, LoadPlan
from fedsea_mq.load.samples import Sample
from fedsea_mq.settings import Settings

# What every process may hold more at the end than after the warm-up.
RSS_GROWTH: Final = 1.02
_CLIENTS: Final = 32
_CAPACITY_S: Final = 40.0
_WARMUP_S: Final = 10.0
# The share of the run that is warm-up, and that of it whose median is compared: after that, and
# at the end.
_WARM: Final = 0.15
_COMPARED: Final = 0.1
# In less, buffers and caches of the processes are still filling; minutes.
_LONG: Final = 20.0


@dataclass(frozen=True, slots=True)
class Held:
    """What one process held after the warm-up and at the end: medians over a tenth of the run."""

    rss_warm: float
    rss_end: float
    files_warm: float
    files_end: float

    @property
    def is_flat(self) -> bool:
        """Whether memory grew by no more than it may, and open files not at all."""
        return self.rss_end <= self.rss_warm * RSS_GROWTH and self.files_end <= self.files_warm

    def as_json(self) -> dict[str, float]:
        """As the report tells it."""
        return {
            "rss_warm_mb": round(self.rss_warm / 1e6, 1),
            "rss_end_mb": round(self.rss_end / 1e6, 1),
            "rss_growth": round(self.rss_end / self.rss_warm, 4),
            "files_warm": self.files_warm,
            "files_end": self.files_end,
        }


@dataclass(frozen=True, slots=True)
class Soaked:
    """What came of it."""

    minutes: float
    capacity_rps: float
    run: LoadRun
    held: Mapping[str, Held]

    @property
    def is_flat(self) -> bool:
        """Whether no process grew, and nothing failed."""
        met = self.run.tally.errors + self.run.tally.errors_outside
        return not met and all(one.is_flat for one in self.held.values())

    @property
    def verdict(self) -> str:
        """What came of it, in a sentence."""
        grown = [name for name, one in self.held.items() if not one.is_flat]
        met = self.run.tally.errors + self.run.tally.errors_outside
        said = [f"grown: {', '.join(grown)}"] if grown else []
        said += [f"{count} {name}" for name, count in met.items()]
        if grown and self.minutes < _LONG:
            said.append(f"under {_LONG:g} minutes, that may be the warm-up")
        return "; ".join(said) or "no process grew, and no request failed"

    def as_json(self) -> dict[str, Any]:
        """The report."""
        report = self.run.report
        kept = ("requests", "errors_outside", "refusals", "tokens_per_s", "ttft_ms", "tpot_ms")
        return {
            "minutes": self.minutes,
            "capacity_rps": round(self.capacity_rps, 2),
            "rate_rps": round(self.run.plan.rate, 2),
            **{name: report[name] for name in kept},
            "trunk_busy": report["trunk_busy"],
            "processes": {name: one.as_json() for name, one in self.held.items()},
            "flat": self.is_flat,
            "verdict": self.verdict,
        }


async def soak(settings: Settings, minutes: float, load: float) -> Soaked:
    """Find out how many requests a second the system takes, then send it that share of them.

    Full clients, whose requests come at random times, with random lengths; some stop half way or
    vanish. Raises what `run_load` does.
    """
    async with LocalSystem(settings) as system:
        progress_console.print("how many requests a second can it take ...", style="dim")
        closed = await run_load(system, _plan(_CAPACITY_S, _WARMUP_S))
        capacity = closed.report["requests"]["done"] / (_CAPACITY_S - _WARMUP_S)
        steady = _plan(minutes * 60, minutes * 60 * _WARM).model_copy(
            update={
                "arrivals": Arrivals.POISSON,
                "rate": load * capacity,
                "stops": 0.02,
                "vanishes": 0.005,
            }
        )
        run = await run_load(system, steady)
    return Soaked(minutes, capacity, run, held_by(run.samples.taken))


def _plan(duration_s: float, warmup_s: float) -> LoadPlan:
    return LoadPlan(
        kind="full",
        sessions=(1,) * _CLIENTS,
        prompt=Lengths(low=16, high=96),
        new=Lengths(low=8, high=48),
        duration_s=duration_s,
        warmup_s=warmup_s,
    )


def held_by(samples: Sequence[Sample]) -> dict[str, Held]:
    """What each process held, of those that ran all the time."""
    compared = max(1, int(len(samples) * _COMPARED))
    start = int(len(samples) * _WARM)
    warm, end = samples[start : start + compared], samples[-compared:]
    names = [name for name in samples[start].rss_bytes if name in samples[-1].rss_bytes]
    return {
        name: Held(
            median(sample.rss_bytes[name] for sample in warm),
            median(sample.rss_bytes[name] for sample in end),
            median(sample.open_files[name] for sample in warm),
            median(sample.open_files[name] for sample in end),
        )
        for name in names
    }
