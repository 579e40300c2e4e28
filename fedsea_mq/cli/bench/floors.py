"""How near the engine's parts come to what the machine can do."""

from __future__ import annotations

from typing import Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import Workbench


async def _repeat(bench: Workbench) -> Repeat:
    async with bench.alone() as alone:
        found = await alone.ask("floors", batch=64, context=512)
    return {
        "attention_bandwidth": found["attention_bytes_per_s"] / found["read_bytes_per_s"],
        "linear_gemm": found["linears_flops_per_s"] / found["gemm_flops_per_s"],
    }, found


FLOORS: Final = Comparison(
    "floors",
    (
        Ratio(
            "attention_bandwidth",
            "bytes a second of a step's attention, over the machine's read bandwidth",
            0.5,
        ),
        Ratio(
            "linear_gemm",
            "operations a second of a step's linears, over the machine's bf16 rate",
            0.8,
        ),
    ),
    _repeat,
)
