"""Comparisons that are made with the benchmarks' model and with one that is as deep and wider."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from fedsea_mq.cli.bench.comparison import Ratio, Repeat
from fedsea_mq.cli.bench.model_b import write_wide_model
from fedsea_mq.cli.bench.workbench import Workbench

_WIDER = "wide_"


async def at_two_widths(
    bench: Workbench, compare: Callable[[Workbench], Awaitable[Repeat]]
) -> Repeat:
    """One repeat with either model; the wider one's ratios are called `wide_...`."""
    wide = bench.folder / "model-wide"
    write_wide_model(wide)
    narrow_ratios, narrow = await compare(bench)
    wide_ratios, widely = await compare(bench.model(path=str(wide)))
    ratios = {**narrow_ratios, **{_WIDER + name: one for name, one in wide_ratios.items()}}
    return ratios, {"model_b": narrow, "wide": widely}


def ratios_of_both(ratios: Callable[[str, str], Iterable[Ratio]]) -> tuple[Ratio, ...]:
    """What `ratios` gives for the prefix of the names and what is said of the model."""
    return (*ratios("", "hidden 512"), *ratios(_WIDER, "hidden 2048"))
