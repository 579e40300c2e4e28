"""A plan: every legal cut of a model with what it costs, and the one to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsea_mq.cli.output import progress_console
from fedsea_mq.cli.plan.forecasting import forecaster
from fedsea_mq.cli.plan.measure import measure
from fedsea_mq.errors import ConfigError
from fedsea_mq.load.plan import Link
from fedsea_mq.model.checkpoint import EMBEDDED, Checkpoint, read_config
from fedsea_mq.model.partition import Cut, legal_cuts
from fedsea_mq.planning.architecture import Architecture
from fedsea_mq.planning.choice import Option, Recommendation, recommended
from fedsea_mq.planning.forecast import Demand, Forecast
from fedsea_mq.planning.speed import Speed
from fedsea_mq.privacy.audited import Finding, finding
from fedsea_mq.settings import Settings


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of the cut; `client_memory` in bytes."""

    demand: Demand
    link: Link
    client_memory: int
    max_slowdown: float
    audit: Path | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """All options, and which of them to take; None where none fits."""

    model: str
    architecture: Architecture
    wanted: Wanted
    client: Speed
    trunk: Speed
    options: Sequence[Option]
    recommendation: Recommendation | None


async def make_plan(
    settings: Settings, wanted: Wanted, speed: Path | None, client_speed: Path | None
) -> Plan:
    """Predict every cut, with speeds from the files; this machine's where there is none.

    Raises:
        ConfigError: a file is not what it should be, or a request is longer than the model allows.
        CheckpointError, UnsupportedModel: as the model is.
    """
    config = read_config(settings.model.path)
    of = Architecture.of(config)
    if wanted.demand.positions > of.max_positions:
        raise ConfigError(
            f"--prompt and --new: {wanted.demand.positions} positions, the model holds "
            f"{of.max_positions}"
        )
    trunk = None if speed is None else Speed.read(speed)
    if client_speed is not None:
        client = Speed.read(client_speed)
    else:
        progress_console.print("measuring this machine ...", style="dim")
        client = await measure(config, settings)
    speeds = client, trunk or client
    cuts = forecaster(of, settings, speeds, wanted.link, wanted.demand)
    found = _findings(settings, wanted.audit, of.blocks)
    choices = [
        Option(forecast, found.get(forecast.cut), _fits(forecast, wanted.client_memory))
        for forecast in map(cuts.forecast, legal_cuts(of.blocks))
    ]
    chosen = recommended(choices, wanted.max_slowdown)
    return Plan(settings.model.path, of, wanted, *speeds, choices, chosen)


def _fits(forecast: Forecast, client_memory: int) -> bool:
    return forecast.client_bytes <= client_memory and forecast.node_sessions > 0


def _findings(settings: Settings, audit: Path | None, blocks: int) -> Mapping[Cut, Finding]:
    """What the audit found at each cut it has, at the settings' noise.

    Raises:
        ConfigError: it is no audit, or of no cut of this model.
    """
    path = settings.model.path
    if audit is None and path != EMBEDDED:
        return {}
    checkpoint = Checkpoint.open(path)
    noise = settings.noise.model_copy(update={"audit": audit})
    asked = {cut: finding(noise, checkpoint.fingerprint(cut)) for cut in legal_cuts(blocks)}
    found = {cut: one for cut, one in asked.items() if one is not None}
    if not found and audit is not None:
        raise ConfigError(f"--audit {audit}: is of no cut of {path}")
    return found
