"""The gateway against the client node that it holds: the same answers, over HTTP and as JSON lines.

Both are processes of their own, on the same running system, and are asked by this one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.model_b import VOCAB
from fedsea_mq.cli.bench.streams import (
    GatewayStreams,
    NativeStreams,
    Streamed,
    closed_loop,
)
from fedsea_mq.cli.bench.workbench import Workbench
from fedsea_mq.cli.processes import LocalSystem

_SESSIONS: Final = 16
_ANSWERS: Final = 2
_PROMPT: Final = 64
_NEW: Final = 64
# There and back, so that a machine that slows down meanwhile slows down both.
_ORDER: Final = ("native", "gateway", "gateway", "native") * 2


@dataclass(slots=True)
class _Side:
    """One of the two: how it is asked, its process, and what came of it."""

    streams: Callable[[], NativeStreams | GatewayStreams]
    process: psutil.Process
    runs: list[Streamed] = field(default_factory=list)
    cpu_s: float = 0.0

    async def run(self, sessions: int, answers: int, new: int) -> Streamed:
        """Answers of sessions that each ask for one after the other."""
        async with self.streams() as streams:
            return await closed_loop(streams.stream, _prompts(sessions, answers), new)

    async def measure(self) -> None:
        """One more run that counts."""
        before_s = self._cpu_s()
        self.runs.append(await self.run(_SESSIONS, _ANSWERS, _NEW))
        self.cpu_s += self._cpu_s() - before_s

    def _cpu_s(self) -> float:
        return float(sum(self.process.cpu_times()[:2]))

    def figures(self) -> dict[str, float]:
        """Of all runs together."""
        tokens = sum(run.tokens for run in self.runs)
        firsts = [first for run in self.runs for first in run.firsts_s]
        generator_s = sum(run.generator_cpu_s for run in self.runs)
        return {
            "tokens_per_s": tokens / sum(run.took_s for run in self.runs),
            "ttft_p95": float(np.percentile(firsts, 95)),
            "process_cpu_ms_per_token": 1000 * self.cpu_s / tokens,
            "generator_cpu_ms_per_token": 1000 * generator_s / tokens,
        }


async def _repeat(bench: Workbench) -> Repeat:
    async with LocalSystem(bench.model(path=str(_with_words(bench))).settings) as system:
        sides = await _sides(system)
        for side in sides.values():
            await side.run(2, 1, 8)  # the first of its kind is not counted
        for name in _ORDER:
            await sides[name].measure()
    native, gateway = (sides[name].figures() for name in ("native", "gateway"))
    ratios = {
        f"{figure}_vs_native": gateway[figure] / native[figure]
        for figure in ("tokens_per_s", "ttft_p95")
    }
    return ratios, {"native": native, "gateway": gateway}


async def _sides(system: LocalSystem) -> dict[str, _Side]:
    client = await system.start_client("native")
    over_http = system.settings.replace(gateway={"port": 0})
    gateway = await system.start("nodes.gateway", "gateway", over_http)
    await client.wait_ready()
    ready = await gateway.wait_ready()
    url, model = ready["url"], ready["models"][0]
    return {
        "native": _Side(partial(NativeStreams, client), psutil.Process(client.process.pid)),
        "gateway": _Side(partial(GatewayStreams, url, model), psutil.Process(gateway.process.pid)),
    }


def _prompts(sessions: int, answers: int) -> Sequence[Sequence[Sequence[int]]]:
    draw = random.Random(0)  # noqa: S311 - the same for both
    return [
        [[draw.randrange(VOCAB) for _ in range(_PROMPT)] for _ in range(answers)]
        for _ in range(sessions)
    ]


def _with_words(bench: Workbench) -> Path:
    """The benchmarks' model with a tokenizer, a word for each token: the gateway speaks text."""
    folder, model = bench.folder / "model-b-words", Path(bench.settings.model.path)
    if not folder.exists():
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).symlink_to(file)
        words = Tokenizer(WordLevel({f"w{token}": token for token in range(VOCAB)}, "w0"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


GATEWAY: Final = Comparison(
    "gateway",
    (
        Ratio(
            "tokens_per_s_vs_native",
            f"tokens/s of {_SESSIONS} streams over HTTP from a gateway, over those as JSON lines "
            "from a client node, prefill included",
            0.95,
        ),
        Ratio(
            "ttft_p95_vs_native",
            "p95 of the time to the first token, of the same",
            1.1,
            at_most=True,
        ),
    ),
    _repeat,
)
