"""Clients and trunk together against transformers on the unsplit model, on the same cores."""

from __future__ import annotations

from typing import Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.unsplit import CPU_DTYPES
from fedsea_mq.cli.bench.workbench import Workbench

_NEW: Final = 32
_SINGLE_NEW: Final = 96


async def _repeat(bench: Workbench) -> Repeat:
    ours: dict[str, float] = {}
    async with bench.system() as system:
        await system.warm("full")
        for sessions, prompt in ((16, 64), (64, 512)):
            ours[f"{sessions}x{prompt}"] = await system.tokens_per_s_with_prefill(
                sessions, prompt, _NEW
            )
    async with bench.threads(2).system() as system:
        await system.warm("full")
        single = await system.together((1,), 64, _SINGLE_NEW, kind="full")
        ours["1"] = single.tokens_per_s
    theirs = {dtype: await _unsplit(bench.threads(2), dtype) for dtype in CPU_DTYPES}
    best = {name: max(theirs[dtype][name] for dtype in CPU_DTYPES) for name in ours}
    return {f"vs_transformers_{name}": ours[name] / best[name] for name in ours}, {
        "fedsea_tokens_per_s": ours,
        "transformers_tokens_per_s": theirs,
    }


async def _unsplit(bench: Workbench, dtype: str) -> dict[str, float]:
    async with bench.alone() as alone:
        await alone.ask("generate", dtype=dtype, batch=1, prompt=16, new=4)  # warm
        found = {}
        for batch, prompt in ((16, 64), (64, 512)):
            asked = {"dtype": dtype, "batch": batch, "prompt": prompt, "new": _NEW}
            seconds = (await alone.ask("generate", **asked))["seconds"]
            found[f"{batch}x{prompt}"] = batch * _NEW / seconds
        token = await alone.ask("decode_token", dtype=dtype, prompt=64, new=_SINGLE_NEW)
        return found | {"1": 1 / token["token_s"]}


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
    ),
    _repeat,
)
