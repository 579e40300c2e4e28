"""Which cuts and noises are audited, and the run over them, which goes on where it was stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from fedsea_mq.cli.audit.cells import (
    Attacker,
    Audience,
    Setting,
    Taken,
    attack_cell,
    take_cell,
)
from fedsea_mq.cli.audit.kept import KeptFindings
from fedsea_mq.cli.audit.live import LiveSystem, live_system
from fedsea_mq.cli.audit.noise_aware import noise_aware_adapter
from fedsea_mq.cli.audit.training_cells import Training, audit_training, sent_lengths, taken
from fedsea_mq.cli.audit.victims import marked
from fedsea_mq.cli.score import Asked
from fedsea_mq.errors import TaskDataError
from fedsea_mq.model.adapters import AdapterFolder
from fedsea_mq.model.calibration import calibration_states
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.partition import Cut, Part
from fedsea_mq.privacy.attacks.lengths import told_by_lengths
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.noise_shape import NoiseShape, write_shape
from fedsea_mq.privacy.recovery import Judge
from fedsea_mq.privacy.scale import NoiseMode
from fedsea_mq.privacy.shaping import output_gradients, shaped_root
from fedsea_mq.settings import NOISE_OFF, NoiseSettings, Settings, relative_noise
from fedsea_mq.tasks.encoding import Encoded, Encoder
from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.task import Example, Split, Task, Wanted

# None of these worlds, or examples of a task's training split, is asked about.
_SHADOW_SEED: Final = 7
_VICTIM_SEED: Final = 1000
_UTILITY_SEED: Final = 2000
ISOTROPIC: Final = "isotropic noise"
PAPER: Final = "isotropic noise, the paper's scale"
INT8: Final = "isotropic noise, int8 on the wire"
CLIPPED: Final = "clipped, isotropic noise"
SHAPED: Final = "noise shaped to what the trunk tolerates"
OWN: Final = "isotropic noise, clip and shape of the settings"
NOISE_AWARE: Final = "isotropic noise, private adapters trained under it"
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
    noise alone are tried, at the scales `others_at`; and at each of `noise_aware_at` with adapters
    that a client trained at this noise, by itself, for `noise_aware_steps` steps.
    """

    cuts: Sequence[tuple[int, int]]
    scales: Sequence[float]
    victims: int
    shadow: int
    asked: int
    restarts: int
    tasks: Sequence[str]
    others_at: Sequence[float] = ()
    noise_aware_at: Sequence[float] = ()
    noise_aware_steps: int = 80
    trained: int = 4
    trained_steps: int = 8
    trained_at: Sequence[float] = ()
    gradient_noises: Sequence[float] = (0.0, 1.0)
    adapter: Path | None = None

    def settings(
        self, cut: tuple[int, int], model: PublicModel, shape: Path, own: NoiseSettings
    ) -> list[Setting]:
        """What is tried at a cut; `shape` is the file of a shaped noise for it.

        `own` is the noise of the settings, whose clip and shape are tried at each scale.
        """
        found = [Setting(ISOTROPIC, _alone(scale)) for scale in self.scales]
        paper = {"mode": "mean_abs", "scale": _mean_abs(model)}
        found.append(Setting(PAPER, {**_alone(0.0), **paper}))
        if own.clip is not None or own.shape is not None:
            like = _clip_and_shape(own, model)
            found += [Setting(OWN, {**_alone(one), **like}) for one in self.scales if one]
        if cut == self.cuts[0]:
            for scale in self.others_at:
                noise = _alone(scale)
                found.append(Setting(INT8, noise, {"wire_dtype": "int8"}))
                found.append(Setting(CLIPPED, {**noise, "clip": _CLIP}))
                found.append(Setting(SHAPED, {**noise, "shape": str(shape)}))
        return found

    def trainings(self, task: str) -> list[Training]:
        """What is trained; where states have more noise, one step says what there is to say."""
        like = Training(task, self.trained, self.trained_steps)
        return [
            *(replace(like, gradient_noise=noise) for noise in self.gradient_noises),
            *(replace(like, steps=1, noise=scale) for scale in self.trained_at),
        ]


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
    others_at=(1.0,),
    noise_aware_at=(1.0, 2.0),
    trained=8,
    trained_steps=60,
    trained_at=(4.0,),
    gradient_noises=(0.0, 0.5, 1.0),
)


def _alone(scale: float) -> dict[str, Any]:
    """The section `noise` for isotropic noise and nothing else, whatever the settings say."""
    return {**NOISE_OFF, **relative_noise(scale)}


def _clip_and_shape(own: NoiseSettings, model: PublicModel) -> dict[str, Any]:
    """Those of the settings, beside noise relative to the head's RMS."""
    clip = own.clip
    if clip is not None and own.mode is not NoiseMode.RELATIVE:  # it is a norm
        clip /= model.head_rms() * model.checkpoint.hidden**0.5
    if own.shape is None:
        return {"clip": clip, "shape": None}
    NoiseShape.load(own.shape, model.checkpoint.hidden)  # or it is refused now, not after minutes
    return {"clip": clip, "shape": str(own.shape)}


def _mean_abs(model: PublicModel) -> float:
    """The paper's default scale: as large as the head's output (s = 0.02 where mean |h| is)."""
    return round(float(calibration_states(model.checkpoint, model.head).abs().mean()), 4)


async def audit(
    settings: Settings, grid: Grid, folder: Path | None
) -> AsyncIterator[list[dict[str, Any]]]:
    """The rows of one setting after another; what `folder` has of them is not found again.

    Raises `IllegalCut` before anything is done if one of the cuts is.
    """
    checkpoint = Checkpoint.open(settings.model.path)
    for cut in grid.cuts:
        Cut(*cut).blocks(Part.TRUNK, checkpoint.blocks)
    with TemporaryDirectory(prefix="fedsea-audit-") as name:
        files = Path(name) if folder is None else folder
        kept = KeptFindings(None if folder is None else folder / "cells")
        for cut in grid.cuts:
            at_cut = _At(settings, grid, cut, kept)
            shape = files / f"shape-{cut[0]}-{cut[1]}.safetensors"
            async for rows in at_cut.audit(grid.settings(cut, at_cut.base, shape, settings.noise)):
                yield rows
        adapters = await _noise_aware(settings, grid, files)
        for scale, adapter in adapters.items():
            aware = _At(settings, replace(grid, adapter=adapter), grid.cuts[0], kept)
            async for rows in aware.audit([Setting(NOISE_AWARE, _alone(scale))]):
                yield rows


async def _noise_aware(settings: Settings, grid: Grid, files: Path) -> dict[float, Path]:
    """The adapters by the noise that they were trained under; they train side by side."""
    async with asyncio.TaskGroup() as training:
        adapters = {
            scale: training.create_task(
                noise_aware_adapter(
                    _cut(settings, grid.cuts[0]).replace(noise=_alone(scale)),
                    grid.tasks[0],
                    grid.noise_aware_steps,
                    files / f"noise-aware-{scale:g}",
                )
            )
            for scale in grid.noise_aware_at
        }
    return {scale: task.result() for scale, task in adapters.items()}


class _At:
    """One cut, with one set of adapters or none."""

    def __init__(
        self, settings: Settings, grid: Grid, cut: tuple[int, int], kept: KeptFindings
    ) -> None:
        self._settings = _with_adapter(_cut(settings, cut), grid.adapter)
        self._attackers = _attackers(self._settings, grid)
        self.base = self._attackers[0].model
        self._audience = _audience(grid, cut, self.base.checkpoint)
        self._kept = kept
        told = ("victims", "shadow", "asked", "tasks")
        asked = [one.examples for one in self._audience.asked]
        self._of = {
            **{name: str(getattr(grid, name)) for name in told},
            "texts": _digest(self._audience.victims, self._audience.shadow, asked),
            "model": self.base.checkpoint.fingerprint(Cut(*cut)),
            "adapter": None if grid.adapter is None else AdapterFolder.open(grid.adapter).digest(),
        }

    async def audit(self, wanted: Sequence[Setting]) -> AsyncIterator[list[dict[str, Any]]]:
        """The rows of each of these settings: those that are kept, then those that are not."""
        missing = []
        for setting in wanted:
            rows = self._kept.find(setting.of(self._settings), self._key(setting))
            if rows is None:
                missing.append(setting)
            else:
                yield rows
        if not missing:
            return
        for shape in {one.noise["shape"] for one in missing if one.defence == SHAPED}:
            _write_shape(self.base, self._audience.shadow, Path(shape))
        async with live_system(self._settings) as system:
            current = await take_cell(system, missing[0], self._audience)
            for setting, following in zip_longest(missing, missing[1:]):
                rows, current = await self._attack_beside(current, system, following)
                self._kept.add(setting.of(self._settings), self._key(setting), rows)
                yield rows

    async def _attack_beside(
        self, current: Taken, system: LiveSystem, following: Setting | None
    ) -> tuple[list[dict[str, Any]], Taken]:
        """The rows of what was taken; meanwhile what follows is taken, if anything does."""
        attacking = asyncio.to_thread(attack_cell, current, self._attackers, self._audience)
        if following is None:
            return await attacking, current
        async with asyncio.TaskGroup() as both:
            rows = both.create_task(attacking)
            coming = both.create_task(take_cell(system, following, self._audience))
        return rows.result(), coming.result()

    def _key(self, setting: Setting) -> Any:
        """What the rows of a setting depend on beside the settings."""
        return [self._of, self._audience.restarts, setting.defence]


def _write_shape(model: PublicModel, texts: Sequence[Sequence[int]], file: Path) -> None:
    """The noise that spares the loss on texts of the kind."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_shape(file, shaped_root(output_gradients(model, texts), _RIDGE))


async def audit_beside(settings: Settings, grid: Grid, folder: Path | None) -> dict[str, Any]:
    """What training gives away at the settings' cut and noise, and what lengths alone do.

    What `folder` has of it is not found again.
    """
    kept = KeptFindings(None if folder is None else folder / "cells")
    told = ("shadow", "tasks", "trained", "trained_steps", "trained_at", "gradient_noises")
    checkpoint = Checkpoint.open(settings.model.path)
    of = {
        **{name: str(getattr(grid, name)) for name in told},
        "texts": _digest(_shadow(grid, checkpoint), _trained_on(grid)),
        "model": checkpoint.digests,
    }
    found: dict[str, Any] | None = kept.find(settings, of)
    if found is None:
        found = await _beside(settings, grid, checkpoint)
        kept.add(settings, of, found)
    return found


def _trained_on(grid: Grid) -> list[list[Example]]:
    counts = (Training("", grid.trained, grid.trained_steps).count, grid.shadow)
    return [Asked.of(find(name), taken(count)).examples for name in grid.tasks for count in counts]


async def _beside(settings: Settings, grid: Grid, checkpoint: Checkpoint) -> dict[str, Any]:
    shadow = _shadow(grid, checkpoint)
    judge = Judge(checkpoint.tokenizer, shadow)
    rows, lengths = [], []
    for task in grid.tasks:
        found = await audit_training(settings, grid.trainings(task), shadow, judge)
        rows += [{"task": task, **row} for row in found]
        lengths += sent_lengths(task, grid.shadow, checkpoint)
    return {
        "training": rows,
        "lengths": asdict(told_by_lengths([prompt for prompt, _ in lengths])),
        "lengths_with_answers": asdict(told_by_lengths(lengths)),
    }


def cells_of(grid: Grid, own: NoiseSettings) -> int:
    """How many settings there are, over all cuts."""
    others = 3 * len(grid.others_at) + len(grid.noise_aware_at)
    is_own = own.clip is not None or own.shape is not None
    like_own = sum(1 for scale in grid.scales if scale) if is_own else 0
    return len(grid.cuts) * (len(grid.scales) + 1 + like_own) + others


def _cut(settings: Settings, cut: tuple[int, int]) -> Settings:
    return settings.replace(model={"head_blocks": cut[0], "tail_blocks": cut[1]})


def _with_adapter(settings: Settings, adapter: Path | None) -> Settings:
    if adapter is None:
        return settings
    held = {_ADAPTER: str(adapter)}
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
    attacked = [Asked.of(find(name), _attacked(grid)) for name in grid.tasks]
    victims = [one for task in attacked for one in marked(task, checkpoint, _VICTIM_SEED)]
    shadow = _shadow(grid, checkpoint)
    wanted = Wanted(Split.VALIDATION, grid.asked, _UTILITY_SEED)
    asked = [Asked.of(find(name), wanted) for name in grid.tasks]
    restarts = grid.restarts if cut == grid.cuts[0] else 0
    answers = [one for task in asked for one in _answers(task, checkpoint)]
    judge = Judge(checkpoint.tokenizer, shadow)
    return Audience(victims, shadow, asked, answers, restarts, judge)


def _answers(asked: Asked, checkpoint: Checkpoint) -> Iterator[Encoded]:
    encoder = Encoder.of(asked.task, checkpoint)
    return (encoder.training(one) for one in asked.examples if one.answer is not None)


def _attacked(grid: Grid) -> Wanted:
    return Wanted(Split.VALIDATION, grid.victims, _VICTIM_SEED)


def _shadow(grid: Grid, checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    own = (learned(grid, find(name)) for name in grid.tasks)
    return [one.tokens for task in own for one in marked(task, checkpoint, _SHADOW_SEED)]


def learned(grid: Grid, task: Task) -> Asked:
    """The attacker's own texts: where a single file is every split, those that are not attacked."""
    attacked = {one.prompt for one in task.source.examples(_attacked(grid))}
    drawn = task.source.examples(Wanted(Split.TRAIN, grid.shadow, _SHADOW_SEED))
    others = [one for one in drawn if one.prompt not in attacked]
    if not others:
        raise TaskDataError(
            f"{task.name}: {len(attacked)} texts are attacked, and there is no other to learn from"
        )
    return Asked(task, others)


def _digest(*of: Any) -> str:
    """Names these texts: what is in a file may have been changed since."""
    return sha256(repr(of).encode()).hexdigest()[:16]
