"""One setting of noise at one cut: captured live, attacked in every way, and scored."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any, Final

import torch

from fedsea_mq.cli.audit.fidelity import Answered, fidelity
from fedsea_mq.cli.audit.live import Captured, LiveSystem
from fedsea_mq.cli.audit.victims import Victim
from fedsea_mq.cli.score import Asked, score
from fedsea_mq.errors import ConfigError
from fedsea_mq.model.partition import Cut
from fedsea_mq.privacy.accounting import privacy_of
from fedsea_mq.privacy.attacks.attack import Attack, Knowledge, Known, Seen
from fedsea_mq.privacy.attacks.averaging import averaged
from fedsea_mq.privacy.attacks.decoder import LearnedDecoder
from fedsea_mq.privacy.attacks.inversion import SoftInversion
from fedsea_mq.privacy.attacks.membership import membership_auc, membership_auc_one_token
from fedsea_mq.privacy.attacks.nearest import NearestNeighbour
from fedsea_mq.privacy.attacks.output_side import PublicTail
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.attacks.vocabulary import BeamMatching, VocabularyMatching
from fedsea_mq.privacy.noise import NoiseSource
from fedsea_mq.privacy.recovery import Guessed, Judge
from fedsea_mq.privacy.scale import NoiseMode
from fedsea_mq.settings import Settings
from fedsea_mq.tasks.encoding import Encoded

ATTACKS: Final[tuple[type[Attack], ...]] = (
    NearestNeighbour,
    VocabularyMatching,
    BeamMatching,
    SoftInversion,
    LearnedDecoder,
    PublicTail,
)
_ANSWER_TOKENS: Final = 12
_DELTA: Final = 1e-5
# Other texts that each victim's is told from.
_DECOYS: Final = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """What the client does to its states: `noise` is the section of the settings."""

    defence: str
    noise: dict[str, Any]
    client: dict[str, Any] = field(default_factory=dict)

    def of(self, settings: Settings) -> Settings:
        """The settings with this noise."""
        return settings.replace(noise=self.noise, client=self.client)


@dataclass(frozen=True, slots=True)
class Audience:
    """Who is attacked, what like texts the attacker has, and what utility is measured on.

    `asked` is what is to be answered, `answers` are right answers after their prompts.
    """

    victims: Sequence[Victim]
    shadow: Sequence[Sequence[int]]
    asked: Sequence[Asked]
    answers: Sequence[Encoded]
    restarts: int
    judge: Judge


@dataclass(frozen=True, slots=True)
class Attacker:
    """A model that the attacker has, and what it has beside the base weights, if anything."""

    model: PublicModel
    more: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a trunk was sent at one setting, and what the answers were worth.

    `runs` are of the victims' prompts: one, and one for each client node that was started anew.
    """

    setting: Setting
    cut: Cut
    runs: Sequence[Sequence[Captured]]
    answered: Sequence[Answered]
    noise: NoiseSource
    sigma: float
    said: dict[str, Any]


async def take_cell(system: LiveSystem, setting: Setting, audience: Audience) -> Taken:
    """Run a setting: what the trunk receives, and what the tasks score."""
    settings = setting.of(system.settings)
    captures, noise = await system.capture(settings, audience.victims, _ANSWER_TOKENS)
    again = [
        (await system.capture(settings, audience.victims, _ANSWER_TOKENS))[0]
        for _ in range(audience.restarts if settings.noise.mode is not NoiseMode.OFF else 0)
    ]
    answered = await _answered(system, settings, audience.answers)
    (scored,) = await score(settings, [setting.noise], audience.asked, join=True)
    system.engine.forget()
    said = {
        "cut": scored.cut,
        "sigma": round(scored.sigma, 6),
        "sigma_over_head_rms": round(scored.sigma_over_head_rms, 4),
        "utility": round(fmean(scored.scores.values()), 4),
        "scores": {name: round(value, 4) for name, value in scored.scores.items()},
    }
    cut = Cut(settings.model.head_blocks, settings.model.tail_blocks)
    return Taken(setting, cut, (captures, *again), answered, noise, scored.sigma, said)


def attack_cell(
    taken: Taken, attackers: Sequence[Attacker], audience: Audience
) -> list[dict[str, Any]]:
    """Attack and judge: a row for each attack of each attacker. Takes long.

    The first attacker has the base weights alone, the last one what the client runs with.
    """
    base, own, noise = attackers[0].model, attackers[-1].model, taken.noise
    longest = max(len(victim.tokens) for victim in audience.victims)
    said = {
        "fingerprint": base.checkpoint.fingerprint(taken.cut),
        "defence": taken.setting.defence,
        **taken.said,
        "privacy": _epsilon(noise, longest),
        **fidelity(base, own, taken.answered),
    }
    rows: list[dict[str, Any]] = []
    for attacker in attackers:
        known = Known(attacker.model.against(noise), taken.sigma, audience.shadow)
        runs = [[_looked_at(known.model, one) for one in run] for run in taken.runs]
        if not rows:  # with the base weights alone
            said |= _membership(known, runs[0])
        found = _attacked(known, audience.judge, runs)
        rows += [said | row | _knowing(row, attacker) for row in found]
    return rows


async def _answered(
    system: LiveSystem, settings: Settings, answers: Sequence[Encoded]
) -> list[Answered]:
    texts = [Victim(one.ids, ()) for one in answers]
    captures, _ = await system.capture(settings, texts, 1)
    return [Answered(one, sent.seen) for one, sent in zip(answers, captures, strict=True)]


def _membership(known: Known, run: Sequence[Captured]) -> dict[str, Any]:
    model, sent = known.model, [(one.seen, one.tokens) for one in run]
    return {
        "membership_auc": membership_auc(model, sent, known.shadow[:_DECOYS]),
        "membership_auc_one_token": membership_auc_one_token(model, sent, _DECOYS),
    }


def _epsilon(noise: NoiseSource, positions: int) -> dict[str, Any]:
    """Of one prompt of at most so many positions, sent once; or why there is none."""
    try:
        found = privacy_of(noise, positions=positions, delta=_DELTA)
    except ConfigError as error:
        return {"epsilon": None, "because": str(error)}
    return {**asdict(found), "epsilon": round(found.epsilon, 1)}


def _knowing(row: dict[str, Any], attacker: Attacker) -> dict[str, Any]:
    more = f" and {attacker.more}" if attacker.more else ""
    return {"knowledge": f"{row['knowledge']}{more}"}


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An attack with what it knows, on what it saw."""

    name: str
    knowledge: Knowledge
    attack: Attack
    known: Known
    captures: Sequence[Captured]

    def guessed(self, recovered: Iterable[Sequence[int]]) -> list[Guessed]:
        """What was recovered of each, beside what it was."""
        return [
            Guessed(one.tokens[: len(one.seen.received)], found, one.seen.prompt, one.secrets)
            for one, found in zip(self.captures, recovered, strict=True)
        ]


def _attacked(
    known: Known, judge: Judge, runs: Sequence[Sequence[Captured]]
) -> list[dict[str, Any]]:
    attempts = [_Attempt(one.name, one.knowledge, one(), known, runs[0]) for one in ATTACKS]
    if len(runs) > 1:
        attempts.append(_averaging(known, runs))
    with ThreadPoolExecutor(_at_once(known.model)) as pool:
        # While one that learns for long does so, others recover.
        learning = [pool.submit(one.attack.fit, one.known) for one in attempts]
        recovered = []
        for one, learnt in zip(attempts, learning, strict=True):
            learnt.result()
            recovered.append(pool.map(one.attack.recover, [each.seen for each in one.captures]))
        return [
            _row(one, judge, one.guessed(found))
            for one, found in zip(attempts, recovered, strict=True)
        ]


def _looked_at(model: PublicModel, one: Captured) -> Captured:
    """What was received, as the attacker looks at the states that it computes itself."""
    return replace(one, seen=replace(one.seen, received=model.whitened(one.seen.received)))


def _averaging(known: Known, runs: Sequence[Sequence[Captured]]) -> _Attempt:
    """The same prompts from client nodes that were started anew: each with a key of its own."""
    count = len(runs)
    means = [
        Captured(averaged([_prompt_of(one.seen) for one in several]), first.tokens, first.secrets)
        for first, several in zip(runs[0], zip(*runs, strict=True), strict=True)
    ]
    name = f"averaging over {count} starts of the client"
    fainter = replace(known, sigma=known.sigma / count**0.5)
    return _Attempt(name, Knowledge.SIGMA, BeamMatching(), fainter, means)


def _prompt_of(seen: Seen) -> Seen:
    """Answers may differ from run to run."""
    return Seen(seen.received[: seen.prompt], seen.outputs[: seen.prompt], seen.prompt)


def _at_once(model: PublicModel) -> int:
    """How many texts are attacked side by side: on a CPU, as many as keep its cores busy."""
    if model.device != "cpu":
        return 1
    return max(1, (os.cpu_count() or 1) // torch.get_num_threads())


def _row(attempt: _Attempt, judge: Judge, guesses: Sequence[Guessed]) -> dict[str, Any]:
    return {
        "attack": attempt.name,
        "knowledge": attempt.knowledge.value,
        **judge.judge(guesses).as_json(),
        "random_baseline": round(judge.random_baseline(guesses), 4),
    }
