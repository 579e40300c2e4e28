"""What training gives away: labels from gradients, inputs from states, and both together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fedsea_mq.cli.audit.live_training import captured_training
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.privacy.attacks.attack import Knowledge, Known, Seen
from fedsea_mq.privacy.attacks.labels import GradientSeen, LabelMatching
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.attacks.vocabulary import BeamMatching
from fedsea_mq.privacy.noise import noise_source
from fedsea_mq.privacy.recovery import bootstrap, share
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.encoding import Encoded, Encoder
from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.task import Split, Wanted

_SEED: Final = 11


@dataclass(frozen=True, slots=True)
class _Victim:
    """A sequence as the trunk saw it, and what it was of."""

    seen: GradientSeen
    example: Encoded


async def audit_training(
    settings: Settings,
    task: str,
    count: int,
    gradient_noises: Sequence[float],
    shadow: Sequence[Sequence[int]],
) -> list[dict[str, Any]]:
    """Train one member on `count` examples, once a noise on gradients, and attack what was sent."""
    public = PublicModel.load(settings.model)
    hidden = public.checkpoint.hidden
    noise = noise_source(settings.noise, public.head_rms(), hidden, domain="audit")
    model = public.against(noise)
    examples = _examples(task, count, model.checkpoint)
    rows: list[dict[str, Any]] = []
    for gradient_noise in gradient_noises:
        noisy = settings.replace(training={"gradient_noise": gradient_noise})
        captured = await captured_training(noisy, examples, steps=len(examples))
        looked_at = [replace(one, received=model.whitened(one.received)) for one in captured]
        victims = [_Victim(seen, _sent(model, seen, examples)) for seen in looked_at]
        known = Known(model, noise.std, shadow)
        found = await asyncio.to_thread(_attacked, known, victims, gradient_noise)
        rows += [{"gradient_noise": gradient_noise, **row} for row in found]
    return rows


def _examples(task: str, count: int, checkpoint: Checkpoint) -> list[Encoded]:
    found = find(task)
    limits = found.limits.within(checkpoint.max_positions)
    encoder = Encoder(checkpoint.tokenizer, limits.source_tokens)
    drawn = found.source.examples(Wanted(Split.TRAIN, count, _SEED))
    return [encoder.training(example) for example in drawn][:count]


def _sent(model: PublicModel, seen: GradientSeen, examples: Sequence[Encoded]) -> Encoded:
    """Which of the examples it was: training takes them in an order of its own."""
    fitting = [one for one in examples if len(one.ids) == len(seen.received)]
    return min(
        fitting, key=lambda one: float((model.states(one.ids) - seen.received).square().sum())
    )


def _attacked(
    known: Known, victims: Sequence[_Victim], gradient_noise: float
) -> list[dict[str, Any]]:
    labels = LabelMatching(known.model, gradient_noise)
    forward = BeamMatching()
    forward.fit(known)
    found = [labels.recover(one.seen) for one in victims]
    states = [Seen(one.seen.received, one.seen.outputs, len(one.example.ids)) for one in victims]
    alone = [dict(enumerate(forward.recover(seen))) for seen in states]
    both = [
        dict(enumerate(forward.recover(seen, given)))
        for seen, given in zip(states, found, strict=True)
    ]
    return [
        _row("labels from gradients", Knowledge.WEIGHTS, victims, found),
        _row("inputs from states", Knowledge.SIGMA, victims, alone),
        _row("both", Knowledge.SIGMA, victims, both),
    ]


def _row(
    name: str,
    knowledge: Knowledge,
    victims: Sequence[_Victim],
    guesses: Sequence[Mapping[int, int]],
) -> dict[str, Any]:
    pairs = list(zip(victims, guesses, strict=True))
    answers = [list(_hits(one.example, guess, len(one.example.prompt))) for one, guess in pairs]
    tokens = [list(_hits(one.example, guess, 0)) for one, guess in pairs]
    return {
        "attack": name,
        "knowledge": knowledge.value,
        "label_recovery": round(share(answers), 4),
        "ci": [round(bound, 4) for bound in bootstrap(answers)],
        "token_recovery": round(share(tokens), 4),
        "sequences": len(victims),
    }


def _hits(example: Encoded, guess: Mapping[int, int], start: int) -> Iterator[bool]:
    for position, token in enumerate(example.ids[start:], start):
        yield guess.get(position) == token
