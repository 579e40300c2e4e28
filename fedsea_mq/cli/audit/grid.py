"""Which cuts and noises are audited, and the run over them, which goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fedsea_mq.cli.audit.cells import Attacker, Audience, Setting, audit_cell
from fedsea_mq.cli.audit.live import live_system
from fedsea_mq.cli.audit.training_cells import Training, audit_training, sent_lengths
from fedsea_mq.cli.audit.victims import marked
from fedsea_mq.cli.score import Asked
from fedsea_mq.model.calibration import calibration_ids
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.privacy.attacks.lengths import told_by_lengths
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.noise_shape import write_shape
from fedsea_mq.privacy.recovery import Judge
from fedsea_mq.privacy.shaping import output_gradients, shaped_root
from fedsea_mq.settings import NOISE_OFF, Settings
from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.task import Split, Wanted

# None of these worlds, or examples of a task's training split, is asked about.
_SHADOW_SEED: Final = 7
_VICTIM_SEED: Final = 1000
_UTILITY_SEED: Final = 2000
ISOTROPIC: Final = "isotropic noise"
PAPER: Final = "isotropic noise, the paper's scale"
INT8: Final = "isotropic noise, int8 on the wire"
CLIPPED: Final = "clipped, isotropic noise"
SHAPED: Final = "noise shaped to what the trunk tolerates"
# Of the typical norm: about half of the states are scaled down a little, some much.
_CLIP: Final = 0.8
_RIDGE: Final = 0.1
_ADAPTER: Final = "private"


@dataclass(frozen=True, slots=True)
class Grid:
    """Noise scales are relative to the head output's RMS; 0 is none.

    `victims` texts of each task are attacked, `shadow` texts are the attacker's own, `asked` units
    are scored. One member takes `trained_steps` steps of `trained` examples at each of
    `gradient_noises`; and without noise on gradients at each noise of `trained_at`. At the first
    cut each text is sent again by `restarts` client nodes started anew, and other defences than
    noise alone are tried, at the scales `others_at`.
    """

    cuts: Sequence[tuple[int, int]]
    scales: Sequence[float]
    victims: int
    shadow: int
    asked: int
    restarts: int
    tasks: Sequence[str]
    others_at: Sequence[float] = ()
    trained: int = 4
    trained_steps: int = 8
    trained_at: Sequence[float] = ()
    gradient_noises: Sequence[float] = (0.0, 1.0)
    adapter: Path | None = None

    def settings(self, cut: tuple[int, int], model: PublicModel, shape: Path) -> list[Setting]:
        """What is tried at a cut; `shape` is the file of a shaped noise for it."""
        found = [Setting(ISOTROPIC, _relative(scale)) for scale in self.scales]
        found.append(Setting(PAPER, {"mode": "mean_abs", "scale": _mean_abs(model)}))
        if cut == self.cuts[0]:
            for scale in self.others_at:
                noise = _relative(scale)
                found.append(Setting(INT8, noise, {"wire_dtype": "int8"}))
                found.append(Setting(CLIPPED, {**noise, "clip": _CLIP}))
                found.append(Setting(SHAPED, {**noise, "shape": str(shape)}))
        return found


QUICK: Final = Grid(
    cuts=((1, 1),),
    scales=(0.0, 0.5),
    victims=2,
    shadow=48,
    asked=6,
    restarts=3,
    tasks=("embedded",),
)
FULL: Final = Grid(
    cuts=((1, 1), (2, 1), (3, 1)),
    scales=(0.0, 0.5, 1.0, 2.0, 4.0),
    victims=4,
    shadow=64,
    asked=24,
    restarts=3,
    tasks=("embedded",),
    others_at=(0.5, 1.0),
    trained=8,
    trained_steps=60,
    trained_at=(4.0,),
    gradient_noises=(0.0, 0.5, 1.0),
)


def _relative(scale: float) -> dict[str, Any]:
    return {"mode": "relative", "scale": scale} if scale else dict(NOISE_OFF)


def _mean_abs(model: PublicModel) -> float:
    """The paper's default scale: as large as the head's output (s = 0.02 where mean |h| is)."""
    return round(float(model.states(calibration_ids(model.checkpoint)).abs().mean()), 4)


async def audit(
    settings: Settings, grid: Grid, folder: Path | None
) -> AsyncIterator[list[dict[str, Any]]]:
    """The rows of one setting after another; what `folder` has of them is not found again."""
    with TemporaryDirectory(prefix="fedsea-audit-") as name:
        for cut in grid.cuts:
            async for rows in _audit_cut(settings, grid, cut, folder, Path(name)):
                yield rows


async def _audit_cut(
    settings: Settings, grid: Grid, cut: tuple[int, int], folder: Path | None, scratch: Path
) -> AsyncIterator[list[dict[str, Any]]]:
    at_cut = _at_cut(settings, grid, cut)
    attackers = _attackers(at_cut, grid)
    audience = _audience(grid, cut, attackers[0].model.checkpoint)
    kept = _Kept(folder, at_cut, grid)
    shape = (scratch if folder is None else folder) / f"shape-{cut[0]}-{cut[1]}.safetensors"
    wanted = grid.settings(cut, attackers[0].model, shape)
    found = {number: kept.find(setting) for number, setting in enumerate(wanted)}
    for rows in found.values():
        if rows is not None:
            yield rows
    missing = [setting for number, setting in enumerate(wanted) if found[number] is None]
    if not missing:
        return
    if any("shape" in setting.noise for setting in missing):
        _write_shape(attackers[0].model, audience.shadow, shape)
    async with live_system(at_cut) as system:
        for setting in missing:
            rows = await audit_cell(system, setting, attackers, audience)
            kept.add(setting, rows)
            yield rows


def _write_shape(model: PublicModel, texts: Sequence[Sequence[int]], file: Path) -> None:
    """The noise that spares the loss on texts of the kind."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_shape(file, shaped_root(output_gradients(model, texts), _RIDGE))


async def audit_beside(settings: Settings, grid: Grid) -> dict[str, Any]:
    """What training gives away at the settings' cut and noise, and what lengths alone do."""
    checkpoint = Checkpoint.open(settings.model.path)
    audience = _audience(grid, grid.cuts[0], checkpoint)
    shadow, judge = audience.shadow, audience.judge
    rows, lengths = [], []
    for task in grid.tasks:
        training = Training(task, grid.trained, grid.trained_steps)
        found = await audit_training(settings, training, grid.gradient_noises, shadow, judge)
        for scale in grid.trained_at:
            louder = settings.replace(noise=_relative(scale))
            first = replace(training, steps=1)
            found += await audit_training(louder, first, (0.0,), shadow, judge)
        rows += [{"task": task, **row} for row in found]
        lengths += sent_lengths(task, grid.shadow, checkpoint)
    return {
        "training": rows,
        "lengths": asdict(told_by_lengths([prompt for prompt, _ in lengths])),
        "lengths_with_answers": asdict(told_by_lengths(lengths)),
    }


def cells_of(grid: Grid) -> int:
    """How many settings there are, over all cuts."""
    return len(grid.cuts) * (len(grid.scales) + 1) + 3 * len(grid.others_at)


def _at_cut(settings: Settings, grid: Grid, cut: tuple[int, int]) -> Settings:
    settings = settings.replace(model={"head_blocks": cut[0], "tail_blocks": cut[1]})
    if grid.adapter is None:
        return settings
    held = {_ADAPTER: str(grid.adapter)}
    return settings.replace(
        trunk={"adapters": held}, client={"adapters": held, "adapter": _ADAPTER}
    )


def _attackers(settings: Settings, grid: Grid) -> list[Attacker]:
    """Whoever has the public weights; with adapters, also whoever has these, as a member has."""
    base = Attacker(PublicModel.load(settings.model))
    if grid.adapter is None:
        return [base]
    return [base, Attacker(PublicModel.load(settings.model, grid.adapter), "the adapters")]


def _audience(grid: Grid, cut: tuple[int, int], checkpoint: Checkpoint) -> Audience:
    tasks = [find(name) for name in grid.tasks]
    victims = [
        victim
        for task in tasks
        for victim in marked(
            Asked.of(task, Wanted(Split.VALIDATION, grid.victims, _VICTIM_SEED)),
            checkpoint,
            _VICTIM_SEED,
        )
    ]
    shadow = [
        one.tokens
        for task in tasks
        for one in marked(
            Asked.of(task, Wanted(Split.TRAIN, grid.shadow, _SHADOW_SEED)),
            checkpoint,
            _SHADOW_SEED,
        )
    ]
    asked = [Asked.of(task, Wanted(Split.VALIDATION, grid.asked, _UTILITY_SEED)) for task in tasks]
    restarts = grid.restarts if cut == grid.cuts[0] else 0
    return Audience(victims, shadow, asked, restarts, Judge(checkpoint.tokenizer, shadow))


class _Kept:
    """A file for each setting that was audited."""

    def __init__(self, folder: Path | None, settings: Settings, grid: Grid) -> None:
        self._folder = None if folder is None else folder / "cells"
        which = {"cuts", "scales", "others_at"}
        which |= {"trained", "trained_steps", "trained_at", "gradient_noises"}
        rest = {name: str(v) for name, v in asdict(grid).items() if name not in which}
        model = settings.model.model_dump(mode="json", exclude={"threads"})
        self._of = {"model": model, "grid": rest}

    def _file(self, setting: Setting) -> Path | None:
        if self._folder is None:
            return None
        said = json.dumps({**self._of, "setting": asdict(setting)}, sort_keys=True)
        return self._folder / f"{sha256(said.encode()).hexdigest()[:16]}.json"

    def find(self, setting: Setting) -> list[dict[str, Any]] | None:
        file = self._file(setting)
        if file is None or not file.exists():
            return None
        rows: list[dict[str, Any]] = json.loads(file.read_text())
        return rows

    def add(self, setting: Setting, rows: list[dict[str, Any]]) -> None:
        file = self._file(setting)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".new")
            unfinished.write_text(json.dumps(rows, indent=1) + "\n")
            unfinished.replace(file)  # a run that is stopped leaves a whole file, or none
