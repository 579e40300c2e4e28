"""A load test's plots."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from fedsea_mq.load.histogram import Histogram
from fedsea_mq.load.samples import Samples
from fedsea_mq.load.tally import Tally


def plot_run(tally: Tally, samples: Samples, warmup_s: float, file: Path) -> None:
    """Throughput, batch and KV over time, and the latencies' distributions, as one PNG."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    (tokens, batch), (latency, memory) = figure.subplots(2, 2)
    seconds = sorted(tally.tokens_at)
    tokens.plot([warmup_s + s for s in seconds], [tally.tokens_at[s] for s in seconds])
    tokens.set(title="throughput", xlabel="s", ylabel="new tokens/s", ylim=(0, None))
    at = [sample.at_s for sample in samples.taken]
    batch.plot(at, [sample.sessions for sample in samples.taken], label="open sessions")
    batch.plot(at, [sample.batch for sample in samples.taken], label="mean batch of a step")
    batch.set(title="sessions and batches", xlabel="s", ylim=(0, None))
    batch.legend()
    for name, times in (("TTFT", tally.ttft), ("TPOT", tally.tpot), ("end to end", tally.e2e)):
        if times.count:
            latency.plot(*_cumulative(times), label=name)
    latency.set(title="latency", xlabel="ms", ylabel="share of requests", xscale="log")
    latency.legend()
    for name in samples.pids:
        held = [sample.rss_bytes.get(name, 0) / 1e6 for sample in samples.taken]
        memory.plot(at, held, label=name)
    memory.set(title="memory", xlabel="s", ylabel="resident MB", ylim=(0, None))
    if samples.pids:
        memory.legend()
    figure.savefig(file, dpi=110)


def _cumulative(times: Histogram) -> tuple[list[float], list[float]]:
    shares = [percent / 200 for percent in range(1, 201)]
    return [times.percentile(100 * share) * 1000 for share in shares], shares
