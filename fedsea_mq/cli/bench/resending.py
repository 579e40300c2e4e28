"""KV collaboration against sending the whole sequence for each token."""

from __future__ import annotations

from typing import Any, Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.unsplit import CPU_DTYPES
from fedsea_mq.cli.bench.workbench import Workbench

CONTEXTS: Final = (128, 256, 512, 1024, 2048)


async def _repeat(bench: Workbench) -> Repeat:
    ours: dict[int, float] = {}
    async with bench.threads(2).system() as system:
        await system.warm("full")
        for context in CONTEXTS:
            run = await system.together((1,), context, 64, kind="full")
            ours[context] = 1 / run.tokens_per_s
    resent = {dtype: await _resent(bench.threads(2), dtype) for dtype in CPU_DTYPES}
    best = {
        (context, mask): min(resent[dtype][context, mask] for dtype in CPU_DTYPES)
        for context in CONTEXTS
        for mask in (True, False)
    }
    measured: dict[str, Any] = {
        "contexts": list(CONTEXTS),
        "kv_collaboration_ms": [ours[c] * 1000 for c in CONTEXTS],
        "resend_with_mask_ms": [best[c, True] * 1000 for c in CONTEXTS],
        "resend_ms": [best[c, False] * 1000 for c in CONTEXTS],
    }
    for dtype in CPU_DTYPES:
        measured[f"resend_with_mask_{dtype}_ms"] = [resent[dtype][c, True] * 1000 for c in CONTEXTS]
    return {"naive_512": best[512, True] / ours[512]}, measured


async def _resent(bench: Workbench, dtype: str) -> dict[tuple[int, bool], float]:
    async with bench.alone() as trunk, bench.alone() as client:
        port = (await trunk.ask("serve_resent", dtype=dtype))["port"]
        return {
            (context, mask): (
                await client.ask(
                    "resend", dtype=dtype, port=port, context=context, tokens=3, mask=mask
                )
            )["token_s"]
            for context in CONTEXTS
            for mask in (True, False)
        }


RESENDING: Final = Comparison(
    "resending",
    (
        Ratio(
            "naive_512",
            "time of a token when sequence and float mask are sent again, over ours; context 512",
            30.0,
        ),
    ),
    _repeat,
)
