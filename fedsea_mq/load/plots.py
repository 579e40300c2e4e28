"""A load test's plots."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.figure import Figure

from fedsea_mq.load.histogram import Histogram
from fedsea_mq.load.plan import Window
from fedsea_mq.load.samples import Samples
from fedsea_mq.load.tally import Tally


def plot_run(tally: Tally, samples: Samples, window: Window, file: Path) -> None:
    """Throughput, batch and KV over time, and the latencies' distributions, as one PNG."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    (tokens, batch), (latency, memory) = figure.subplots(2, 2)
    tokens.plot(*throughput(tally, window))
    tokens.set(title="throughput", xlabel="s", ylabel="new tokens/s")
    at = [sample.at_s for sample in samples.taken]
    batch.plot(at, [sample.sessions for sample in samples.taken], label="open sessions, at most")
    batch.plot(at, [sample.batch for sample in samples.taken], label="mean batch of a step")
    batch.set(title="sessions and batches", xlabel="s")
    batch.legend()
    for name, times in (("TTFT", tally.ttft), ("TPOT", tally.tpot), ("end to end", tally.e2e)):
        if times.count:
            latency.plot(*_cumulative(times), label=name)
    latency.set(title="latency", xlabel="ms", ylabel="share of requests", xscale="log")
    if latency.lines:
        latency.legend()
    for name in samples.pids:
        held = [sample.rss_bytes.get(name, 0) / 1e6 for sample in samples.taken]
        memory.plot(at, held, label=name)
    memory.set(title="memory", xlabel="s", ylabel="resident MB")
    if samples.pids:
        memory.legend()
    for axes in (tokens, batch, memory):
        # From just below zero: a line at zero is seen whole.
        top = max(1.0, *(max(line.get_ydata(), default=0.0) for line in axes.lines))
        axes.set_ylim(-0.02 * top, 1.05 * top)
    figure.savefig(file, dpi=110)


def throughput(tally: Tally, window: Window) -> tuple[list[float], list[float]]:
    """The middle of each second of the window, and the new tokens a second in it.

    The last second may be a part of one.
    """
    last = max(tally.tokens_at, default=-1)
    seconds = math.ceil(min(window.until_s - window.from_s, last + 1))
    lengths = [min(1.0, window.until_s - window.from_s - second) for second in range(seconds)]
    return (
        [window.from_s + second + length / 2 for second, length in enumerate(lengths)],
        [tally.tokens_at[second] / length for second, length in enumerate(lengths)],
    )


def _cumulative(times: Histogram) -> tuple[list[float], list[float]]:
    shares = [percent / 200 for percent in range(1, 201)]
    return [times.percentile(100 * share) * 1000 for share in shares], shares
