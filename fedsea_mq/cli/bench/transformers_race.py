"""Clients and trunk together against transformers on the unsplit model, on the same cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.continuous import REQUESTS_A_STEP
from fedsea_mq.cli.bench.unsplit import CPU_DTYPES
from fedsea_mq.cli.bench.workbench import Workbench

_NEW: Final = 32
# Sessions and the length of their prompts.
_TOGETHER: Final = ((16, 64), (64, 512))
_SINGLE_NEW: Final = 96


async def _repeat(bench: Workbench) -> Repeat:
    ours: dict[str, float] = {}
    async with bench.system() as system:
        await system.warm("full")
        for sessions, prompt in _TOGETHER:
            ours[f"{sessions}x{prompt}"] = await system.tokens_per_s_with_prefill(
                sessions, prompt, _NEW
            )
    async with bench.threads(2).system() as system:
        await system.warm("full")
        single = await system.together((1,), 64, _SINGLE_NEW, kind="full")
        ours["1"] = single.tokens_per_s
    theirs = {dtype: await _unsplit(bench.threads(2), dtype) for dtype in CPU_DTYPES}
    best = {name: max(theirs[dtype][name] for dtype in CPU_DTYPES) for name in ours}
    continuous = await _continuous(bench.threads(2))
    ratios = {f"vs_transformers_{name}": ours[name] / best[name] for name in ours}
    for batch, prompt in _TOGETHER:
        name = f"{batch}x{prompt}"
        ratios[f"vs_continuous_{name}"] = ours[name] / max(continuous[name].values())
    return ratios, {
        "fedsea_tokens_per_s": ours,
        "transformers_tokens_per_s": theirs,
        "continuous_tokens_per_s": continuous,
    }


async def _unsplit(bench: Workbench, dtype: str) -> dict[str, float]:
    async with bench.alone() as alone:
        await alone.ask("generate", dtype=dtype, batch=1, prompt=16, new=4)  # warm
        found = {}
        for batch, prompt in _TOGETHER:
            asked = {"dtype": dtype, "batch": batch, "prompt": prompt, "new": _NEW}
            seconds = (await alone.ask("generate", **asked))["seconds"]
            found[f"{batch}x{prompt}"] = batch * _NEW / seconds
        token = await alone.ask("decode_token", dtype=dtype, prompt=64, new=_SINGLE_NEW)
        return found | {"1": 1 / token["token_s"]}


async def _continuous(bench: Workbench) -> dict[str, dict[str, float]]:
    """Tokens/s of continuous batching, by sessions and prompt, then by dtype and requests a step.

    The larger work is measured in the dtype only that is faster at the smaller one: in the other,
    where there are matrix units for bf16 alone, it takes minutes.
    """
    found: dict[str, dict[str, float]] = {}
    dtypes: Sequence[str] = CPU_DTYPES
    for batch, prompt in _TOGETHER:
        rates = {
            (dtype, requests): await _continuous_rate(bench, dtype, requests, batch, prompt)
            for dtype in dtypes
            for requests in REQUESTS_A_STEP
        }
        found[f"{batch}x{prompt}"] = {f"{d}_{r}": rate for (d, r), rate in rates.items()}
        dtypes = [max(rates, key=lambda way: rates[way])[0]]
    return found


async def _continuous_rate(
    bench: Workbench, dtype: str, requests: int, batch: int, prompt: int
) -> float:
    async with bench.alone() as alone:
        asked = {"dtype": dtype, "requests": requests, "new": _NEW}
        await alone.ask("continuous", **asked, batch=2, prompt=16)  # warm
        measured = await alone.ask("continuous", **asked, batch=batch, prompt=prompt)
    return batch * _NEW / float(measured["seconds"])


TRANSFORMERS: Final = Comparison(
    "transformers",
    (
        Ratio(
            "vs_transformers_16x64",
            "tokens/s with prefill of 16 full sessions, 64 + 32 tokens, over static `generate`",
            1.8,
        ),
        Ratio("vs_transformers_64x512", "the same of 64 sessions of 512 + 32 tokens", 4.0),
        Ratio(
            "vs_transformers_1",
            "decoded tokens/s of one full session, over a single stream of `generate`",
            1.5,
        ),
        Ratio(
            "vs_continuous_16x64",
            "tokens/s with prefill of 16 full sessions, 64 + 32 tokens, over continuous batching",
        ),
        Ratio("vs_continuous_64x512", "the same of 64 sessions of 512 + 32 tokens"),
    ),
    _repeat,
)
