"""What drafts are worth over a slow link: the embedded model, 50 ms round trip, its own tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import Workbench
from fedsea_mq.cli.processes import LocalSystem
from fedsea_mq.load.plan import Link
from fedsea_mq.model.chat import Message
from fedsea_mq.model.partition import Cut
from fedsea_mq.model.sampling import SamplingSettings
from fedsea_mq.settings import NOISE_OFF, Settings
from fedsea_mq.tasks.dialogues import Kind, dialogues
from nodes.client import ClientNode, Completion
from nodes.load.slow_peer_link import link_over

_LINK: Final = Link(delay_ms=25)
_SEED: Final = 1000
_EACH: Final = 10
_KINDS: Final = (Kind.SUMMARY, Kind.CONVERSATION)
# Where the trunk keeps one block of six, head and tail alone say much the same.
_CUT: Final = Cut(1, 1)
_DEEP: Final = Cut(3, 2)
_GREEDY: Final = SamplingSettings(max_new_tokens=64)


async def _repeat(bench: Workbench) -> Repeat:
    torch.set_num_threads(1)
    plain, looked_up, drafted, exited = await _each_way("off", "lookup", "model", "early_exit")
    deep_plain, deep_exited = await _each_way("off", "early_exit", cut=_DEEP)
    rates = [_decoded_per_s(answers) for answers in (plain, drafted)]
    tried = sum(answer.stats.drafted for answer in drafted)
    held = sum(answer.stats.accepted for answer in drafted)
    measured: dict[str, Any] = {
        "plain_tokens_per_s": rates[0],
        "drafted_tokens_per_s": rates[1],
        "accepted_share": held / max(1, tried),
        "tokens_identical": True,
        "lookup_speedup": _decoded_per_s(looked_up) / rates[0],
        "early_exit_speedup": _decoded_per_s(exited) / rates[0],
        "early_exit_deep_cut_speedup": _decoded_per_s(deep_exited) / _decoded_per_s(deep_plain),
        "whole_answers_speedup": _whole_s(plain) / _whole_s(drafted),
    }
    return {"speculation_50ms": rates[1] / rates[0]}, measured


async def _each_way(*ways: str, cut: Cut = _CUT) -> list[list[Completion]]:
    """The answers with each kind of drafts, which must be the same."""
    model = {"head_blocks": cut.head_blocks, "tail_blocks": cut.tail_blocks}
    async with LocalSystem(Settings().replace(model=model, log={"level": "warning"})) as system:
        answers = [
            await _answers(system.settings.replace(client={"speculation": way})) for way in ways
        ]
    tokens = [[one.tokens for one in each] for each in answers]
    if any(others != tokens[0] for others in tokens):
        raise RuntimeError("drafts changed tokens")
    return answers


async def _answers(settings: Settings) -> list[Completion]:
    """Noise off, because each client node draws its own: the tokens must be the same."""
    quiet = settings.replace(noise=NOISE_OFF)
    async with ClientNode(quiet, link_over(_LINK, seed=0)) as client:
        return [await client.chat(asked, _GREEDY).complete() for asked in _questions()]


def _questions() -> list[list[Message]]:
    return [
        dialogue.prompt(turn).messages()
        for kind in _KINDS
        for dialogue in dialogues(kind, _SEED, _EACH)
        for turn in range(len(dialogue.turns))
    ]


def _decoded_per_s(answers: Sequence[Completion]) -> float:
    """Tokens after the first of each answer, over the time from the first to the last."""
    stats = [answer.stats for answer in answers]
    tokens = sum(one.new_tokens - 1 for one in stats)
    return tokens / sum(one.last_token_at - one.first_token_at for one in stats)


def _whole_s(answers: Sequence[Completion]) -> float:
    return sum(answer.stats.last_token_at - answer.stats.started_at for answer in answers)


SPECULATING: Final = Comparison(
    "speculating",
    (
        Ratio(
            "speculation_50ms",
            "decoded tokens/s with a draft model over without; embedded model, 50 ms",
            2.5,
        ),
    ),
    _repeat,
)
