"""Which cuts and noises are audited, and the run over them, which goes on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fedsea_mq.cli.audit.cells import Attacker, Audience, Setting, audit_cell
from fedsea_mq.cli.audit.live import live_system
from fedsea_mq.cli.audit.training_cells import Training, audit_training, sent_lengths
from fedsea_mq.cli.audit.victims import Victim, marked
from fedsea_mq.cli.bench.kept_scores import digest_of
from fedsea_mq.cli.score import Asked
from fedsea_mq.model.calibration import calibration_states
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.privacy.attacks.lengths import told_by_lengths
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.noise_shape import write_shape
from fedsea_mq.privacy.recovery import Judge
from fedsea_mq.privacy.shaping import output_gradients, shaped_root
from fedsea_mq.settings import Settings, relative_noise
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
        found = [Setting(ISOTROPIC, relative_noise(scale)) for scale in self.scales]
        found.append(Setting(PAPER, {"mode": "mean_abs", "scale": _mean_abs(model)}))
        if cut == self.cuts[0]:
            for scale in self.others_at:
                noise = relative_noise(scale)
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


def _mean_abs(model: PublicModel) -> float:
    """The paper's default scale: as large as the head's output (s = 0.02 where mean |h| is)."""
    return round(float(calibration_states(model.checkpoint, model.head).abs().mean()), 4)


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
    kept = _Kept(folder, grid)
    shape = (scratch if folder is None else folder) / f"shape-{cut[0]}-{cut[1]}.safetensors"
    wanted = grid.settings(cut, attackers[0].model, shape)
    missing = []
    for setting in wanted:
        rows = kept.find(setting.of(at_cut), setting.defence)
        if rows is None:
            missing.append(setting)
        else:
            yield rows
    if not missing:
        return
    if any("shape" in setting.noise for setting in missing):
        _write_shape(attackers[0].model, audience.shadow, shape)
    async with live_system(at_cut) as system:
        for setting in missing:
            rows = await audit_cell(system, setting, attackers, audience)
            kept.add(setting.of(at_cut), setting.defence, rows)
            yield rows


def _write_shape(model: PublicModel, texts: Sequence[Sequence[int]], file: Path) -> None:
    """The noise that spares the loss on texts of the kind."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_shape(file, shaped_root(output_gradients(model, texts), _RIDGE))


async def audit_beside(settings: Settings, grid: Grid) -> dict[str, Any]:
    """What training gives away at the settings' cut and noise, and what lengths alone do."""
    checkpoint = Checkpoint.open(settings.model.path)
    shadow = _shadow(grid, checkpoint)
    judge = Judge(checkpoint.tokenizer, shadow)
    rows, lengths = [], []
    for task in grid.tasks:
        training = Training(task, grid.trained, grid.trained_steps)
        found = await audit_training(settings, training, grid.gradient_noises, shadow, judge)
        for scale in grid.trained_at:
            louder = settings.replace(noise=relative_noise(scale))
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
    victims = _marked(grid, checkpoint, Wanted(Split.VALIDATION, grid.victims, _VICTIM_SEED))
    shadow = _shadow(grid, checkpoint)
    wanted = Wanted(Split.VALIDATION, grid.asked, _UTILITY_SEED)
    asked = [Asked.of(find(name), wanted) for name in grid.tasks]
    restarts = grid.restarts if cut == grid.cuts[0] else 0
    return Audience(victims, shadow, asked, restarts, Judge(checkpoint.tokenizer, shadow))


def _shadow(grid: Grid, checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    wanted = Wanted(Split.TRAIN, grid.shadow, _SHADOW_SEED)
    return [one.tokens for one in _marked(grid, checkpoint, wanted)]


def _marked(grid: Grid, checkpoint: Checkpoint, wanted: Wanted) -> list[Victim]:
    asked = (Asked.of(find(name), wanted) for name in grid.tasks)
    return [one for task in asked for one in marked(task, checkpoint, wanted.seed)]


class _Kept:
    """A file for each setting that was audited.

    Another one is due to whatever else the figures depend on: all settings but where parties are.
    """

    def __init__(self, folder: Path | None, grid: Grid) -> None:
        self._folder = None if folder is None else folder / "cells"
        which = {"cuts", "scales", "others_at"}
        which |= {"trained", "trained_steps", "trained_at", "gradient_noises"}
        self._grid = {name: str(v) for name, v in asdict(grid).items() if name not in which}

    def _file(self, settings: Settings, defence: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{digest_of(settings, [self._grid, defence])}.json"

    def find(self, settings: Settings, defence: str) -> list[dict[str, Any]] | None:
        file = self._file(settings, defence)
        if file is None or not file.exists():
            return None
        rows: list[dict[str, Any]] = json.loads(file.read_text())
        return rows

    def add(self, settings: Settings, defence: str, rows: list[dict[str, Any]]) -> None:
        file = self._file(settings, defence)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".new")
            unfinished.write_text(json.dumps(rows, indent=1) + "\n")
            unfinished.replace(file)  # a run that is stopped leaves a whole file, or none
