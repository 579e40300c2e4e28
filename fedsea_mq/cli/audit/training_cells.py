"""What training gives away: labels from gradients, inputs from states, and both together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fedsea_mq.cli.audit.live_training import TaughtStep, captured_training
from fedsea_mq.cli.audit.victims import drawn_number
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.privacy.attacks.attack import Knowledge, Known, Seen
from fedsea_mq.privacy.attacks.gradient_matching import match_labels
from fedsea_mq.privacy.attacks.labels import Labels, recover_labels
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.attacks.vocabulary import BeamMatching
from fedsea_mq.privacy.noise import noise_source
from fedsea_mq.privacy.recovery import Guessed, Judge, bootstrap, share
from fedsea_mq.settings import Settings, relative_noise
from fedsea_mq.tasks.encoding import Encoded, Encoder
from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.task import Example, Split, Wanted

_SEED: Final = 11
# The examples are so many batches: each is taken again after as many steps.
_BATCHES: Final = 3
# Ten times the default: the tail is soon not the public one any more.
_RATE: Final = 1e-3

Guess = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained: steps of `batch` examples of a task. Its first and last step is attacked.

    `noise` is on states, relative to the head output's RMS (None: as the settings say), and
    `gradient_noise` on gradients.
    """

    task: str
    batch: int
    steps: int
    gradient_noise: float = 0.0
    noise: float | None = None

    @property
    def count(self) -> int:
        """How many examples there are."""
        return self.batch * _BATCHES

    def of(self, settings: Settings) -> Settings:
        """The settings with this training's noise and batches."""
        own = {
            "gradient_noise": self.gradient_noise,
            "batch_size": self.batch,
            "accumulate": 1,
            "learning_rate": _RATE,
        }
        noise = {} if self.noise is None else relative_noise(self.noise)
        return settings.replace(training=own, noise=noise)


async def audit_training(
    settings: Settings,
    trainings: Sequence[Training],
    shadow: Sequence[Sequence[int]],
    judge: Judge,
) -> list[dict[str, Any]]:
    """Train one member so, one training after another, and attack what was sent meanwhile."""
    attacker = _Attacker(PublicModel.load(settings.model), shadow, judge)
    attacks: list[asyncio.Task[list[dict[str, Any]]]] = []
    async with asyncio.TaskGroup() as attacking:
        for training in trainings:
            own = training.of(settings)
            examples = _examples(training, attacker.public.checkpoint)
            taught = await captured_training(own, examples, steps=training.steps)
            attack = asyncio.to_thread(attacker.rows, own, taught)
            attacks.append(attacking.create_task(attack))
    return [row for one in attacks for row in one.result()]


@dataclass(frozen=True, slots=True)
class _Attacker:
    public: PublicModel
    shadow: Sequence[Sequence[int]]
    judge: Judge

    def rows(self, settings: Settings, taught: Sequence[TaughtStep]) -> list[dict[str, Any]]:
        """What is recovered of what was sent under these settings. Takes long."""
        hidden, rms = self.public.checkpoint.hidden, self.public.head_rms()
        noise = noise_source(settings.noise, rms, hidden, domain="audit")
        known = Known(self.public.against(noise), noise.std, self.shadow)
        said = {
            "noise": round(noise.std / rms, 4),
            "gradient_noise": settings.training.gradient_noise,
        }
        return [said | row for row in _both_ends(known, self.judge, taught)]


def sent_lengths(task: str, count: int, checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """Tokens of the prompt and of the answer, of so many units of a task."""
    encoder = Encoder.of(find(task), checkpoint)
    encoded = [encoder.training(one) for one in _drawn(task, count)]
    return [(len(one.prompt), len(one.answer)) for one in encoded]


def taken(count: int) -> Wanted:
    """What is trained on, or whose lengths are told."""
    return Wanted(Split.TRAIN, count, _SEED)


def _examples(training: Training, checkpoint: Checkpoint) -> list[Encoded]:
    """Each answer goes on with a number that nobody could guess."""
    count, encoder = training.count, Encoder.of(find(training.task), checkpoint)
    rng = random.Random(f"audit {_SEED}")  # noqa: S311 - invented numbers
    return [
        encoder.training(replace(one, answer=f"{one.answer} {drawn_number(rng)}"))
        for one in _drawn(training.task, count)[:count]
    ]


def _drawn(task: str, count: int) -> list[Example]:
    """One example a unit: the turns of one conversation hold the same text."""
    drawn = find(task).source.examples(taken(count))
    return list({one.unit: one for one in drawn if one.answer is not None}.values())


def _both_ends(known: Known, judge: Judge, taught: Sequence[TaughtStep]) -> list[dict[str, Any]]:
    first, last = taught[0], taught[-1]
    labels = recover_labels(known.model, first.seen)
    rows = [
        *_from_gradients(known, judge, first, labels),
        *_from_states(known, judge, first, labels),
    ]
    if last is not first:
        labels = recover_labels(known.model, last.seen)
        rows += _from_gradients(known, judge, last, labels)
    return rows


def _from_gradients(
    known: Known, judge: Judge, step: TaughtStep, labels: Sequence[Labels]
) -> Iterator[dict[str, Any]]:
    model, weights = known.model, Knowledge.WEIGHTS
    found = [one.by_position() for one in labels]
    yield _row("labels from gradients", weights, judge, step, found)
    yield _row("gradient matching", weights, judge, step, match_labels(model, step.seen))
    said = [model.answers(one.outputs).argmax(dim=-1).tolist() for one in step.seen]
    yield _row(
        "public tail on outputs", weights, judge, step, [dict(enumerate(one, 1)) for one in said]
    )


def _from_states(
    known: Known, judge: Judge, step: TaughtStep, labels: Sequence[Labels]
) -> Iterator[dict[str, Any]]:
    """The states alone, and with what the gradients say of the answer."""
    matching = BeamMatching()
    matching.fit(known)
    states = [
        Seen(known.model.whitened(one.received), one.outputs, len(one.received))
        for one in step.seen
    ]
    alone = [dict(enumerate(matching.recover(one))) for one in states]
    yield _row("inputs from states", Knowledge.SIGMA, judge, step, alone)
    pairs = zip(states, labels, strict=True)
    both = [dict(enumerate(matching.recover(one, found.told()))) for one, found in pairs]
    yield _row("both", Knowledge.SIGMA, judge, step, both)


def _row(
    name: str, knowledge: Knowledge, judge: Judge, step: TaughtStep, guesses: Sequence[Guess]
) -> dict[str, Any]:
    pairs = list(zip(step.examples, guesses, strict=True))
    answers = [list(_hits(one, guess, len(one.prompt))) for one, guess in pairs]
    tokens = [list(_hits(one, guess, 0)) for one, guess in pairs]
    wholes = [Guessed(one.ids, one.ids, len(one.ids), ()) for one in step.examples]
    return {
        "after_steps": step.after,
        "attack": name,
        "knowledge": knowledge.value,
        "label_recovery": round(share(answers), 4),
        "ci": [round(bound, 4) for bound in bootstrap(answers)],
        "token_recovery": round(share(tokens), 4),
        "random_baseline": round(judge.random_baseline(wholes), 4),
        "sequences": len(guesses),
    }


def _hits(example: Encoded, guess: Guess, start: int) -> Iterator[bool]:
    for position, token in enumerate(example.ids[start:], start):
        yield guess.get(position) == token
