"""The `fedsea` command: parse, build, run. Heavy imports wait until a command needs them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from fedsea_mq import __version__
from fedsea_mq.cli import options
from fedsea_mq.cli.adapters import adapters
from fedsea_mq.cli.audit.command import audit
from fedsea_mq.cli.bench.command import bench
from fedsea_mq.cli.chaos.command import chaos
from fedsea_mq.cli.keys import keygen, trust
from fedsea_mq.cli.output import console, print_json, print_table, progress_console
from fedsea_mq.entry import leaves
from fedsea_mq.errors import ConfigError, FedSeaError, PeerUnreachable
from fedsea_mq.settings import NOISE_OFF, Settings, explain
from fedsea_mq.tasks.task import Split, Wanted

app = typer.Typer(
    name="fedsea",
    help="Private split-LLM inference: the text stays here, a shared trunk does the work.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")
app.add_typer(adapters, name="adapters")
app.add_typer(trust, name="trust")
app.command()(keygen)
app.command()(audit)
app.command()(chaos)
Count = Annotated[int, typer.Option("--n", min=1, help="Examples of a task.")]


def _version(asked: bool) -> None:
    if asked:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    config: options.Config = None, set_: options.Overrides = None, as_json: options.AsJson = False
) -> None:
    """Start a broker, two trunk nodes and three clients, and stream their answers."""
    from fedsea_mq.cli.demo import demo as run

    settings = Settings.load(config, set_ or [], ["trunk.nodes=2", "log.level=warning"])
    _run(run(settings, as_json=as_json))


@app.command()
def up(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Start a broker and its trunk nodes from one configuration file, until Ctrl-C."""
    from fedsea_mq.cli.serve import up as run

    _run(run(Settings.load(config, set_ or [])))


@app.command()
def broker(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Run a broker in this process. The same as `python -m broker`."""
    from broker.__main__ import main as run

    sys.exit(run(_arguments(config, set_)))


@app.command()
def trunk(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Run a trunk node in this process. The same as `python -m nodes.trunk`."""
    from nodes.trunk.__main__ import main as run

    sys.exit(run(_arguments(config, set_)))


@app.command()
def aggregator(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Run the aggregator of a training run in this process. As `python -m nodes.aggregator`."""
    from nodes.aggregator.__main__ import main as run

    sys.exit(run(_arguments(config, set_)))


@app.command()
def trainer(config: options.Config = None, set_: options.Overrides = None) -> None:
    """Run one client of a training run in this process. The same as `python -m nodes.trainer`."""
    from nodes.trainer.__main__ import main as run

    sys.exit(run(_arguments(config, set_)))


@app.command()
def train(
    config: options.Config = None,
    set_: options.Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    join: Annotated[
        bool, typer.Option("--join", help="Use the running broker and trunk of the settings.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune by split LoRA, federated over clients that are all started here."""
    from fedsea_mq.cli.train.command import train as run

    _run(run(_quiet(config, set_), resume=resume, join=join, as_json=as_json))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue, or `-` for standard input.")],
    config: options.Config = None,
    set_: options.Overrides = None,
    as_json: options.AsJson = False,
    as_chat: Annotated[bool, typer.Option("--chat", help="Ask as a chat message.")] = False,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    adapter: options.Adapter = None,
) -> None:
    """Continue a text on a running system; tokens appear as they come."""
    from fedsea_mq.cli.talk import generate as run

    text = sys.stdin.read() if prompt == "-" else prompt
    sampling = _sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    settings = _with_adapter(_quiet(config, set_), adapter)
    _run(run(settings, text, sampling, as_chat=as_chat, as_json=as_json))


@app.command()
def chat(
    config: options.Config = None,
    set_: options.Overrides = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    adapter: options.Adapter = None,
) -> None:
    """Talk with the model on a running system."""
    from fedsea_mq.cli.talk import chat as run

    sampling = _sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    _run(run(_with_adapter(_quiet(config, set_), adapter), sampling))


@app.command()
def shard(
    model: Annotated[str, typer.Option(help="`embedded`, a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write head, trunk and tail into.")],
    head: Annotated[int, typer.Option(min=0, help="Decoder blocks in the head.")] = 1,
    tail: Annotated[int, typer.Option(min=0, help="Decoder blocks in the tail.")] = 1,
    as_json: options.AsJson = False,
) -> None:
    """Write a model as three folders that can be handed out separately."""
    from fedsea_mq.cli.shard import shard as run

    sizes = run(model, head, tail, out)
    if as_json:
        print_json(sizes)
    else:
        rows = [(str(out / part), f"{size / 1e6:.1f} MB") for part, size in sizes.items()]
        print_table(f"{model} cut {head}+{tail}", ["folder", "tensors"], rows)


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="Folder to write the model into.")],
    draft: Annotated[bool, typer.Option("--draft", help="The small draft model instead.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Fewer steps than the default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    as_json: options.AsJson = False,
) -> None:
    """Train the embedded model from nothing, on text made by the project itself."""
    from fedsea_mq.cli.pretrain import pretrain as run

    run(out, draft=draft, steps=steps, seed=seed, threads=threads, as_json=as_json)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=1.0, help="How long, warm-up and all.")] = 60.0,
    load: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of what the system takes.")
    ] = 0.8,
    config: options.Config = None,
    set_: options.Overrides = None,
    as_json: options.AsJson = False,
) -> None:
    """Load a system steadily for long, and see that no process grows.

    Exits 1 if one did: in memory by more than 2 % after the warm-up, or in open files at all; or if
    a request failed.
    """
    from fedsea_mq.cli.soak import soak as run

    soaked = _run(run(_quiet(config, set_), minutes, load))
    told = soaked.as_json()
    if as_json:
        print_json(told)
    else:
        rows = [(name, *one.values()) for name, one in told["processes"].items()]
        columns = ("process", "MB, warm", "MB, end", "growth", "files, warm", "files, end")
        print_table(f"{minutes:g} min at {told['rate_rps']} requests/s", columns, rows)
        console.print(soaked.verdict, soft_wrap=True)
    sys.exit(0 if soaked.is_flat else 1)


@app.command()
def verify(
    model: Annotated[str, typer.Option(help="`embedded`, a folder or a hub id.")] = "embedded",
    head: Annotated[int, typer.Option(min=0, help="Decoder blocks in the head.")] = 1,
    tail: Annotated[int, typer.Option(min=0, help="Decoder blocks in the tail.")] = 1,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines with prompt, text or passage.text.")
    ] = None,
    count: Annotated[int, typer.Option("--n", min=1, help="Prompts.")] = 12,
    new_tokens: Annotated[int, typer.Option(min=2)] = 32,
    max_prompt_tokens: Annotated[int, typer.Option(min=1)] = 512,
    every_cut: Annotated[bool, typer.Option(help="Every legal cut instead of one.")] = False,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With this adapter of the unsplit model.")
    ] = None,
    set_: options.Overrides = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare the split system, over real processes, with the unsplit model.

    With an adapter, the unsplit model is peft's.

    Exits 1 if fp32 differs. Other dtypes, and int8 weights and KV cache, round: what that makes
    of the logits is reported, and no bound is held.
    """
    from fedsea_mq.cli.verify import Ask
    from fedsea_mq.cli.verify import verify as run

    settings = _quiet(None, set_).replace(
        model={"path": model, "head_blocks": head, "tail_blocks": tail, "dtype": dtype}
    )
    asks = Ask(prompts, count, new_tokens, max_prompt_tokens, adapter)
    verdicts = _run(run(settings, asks, every_cut=every_cut))
    if as_json:
        found = [verdict.as_json() for verdict in verdicts]
        print_json(found if every_cut else found[0])
    else:
        narrow = [key for key in ("weights", "kv_cache") if getattr(settings.model, key) == "int8"]
        mode = ", ".join([dtype, *(f"int8 {key}" for key in narrow)])
        print_table(
            f"{model}, {mode}, split against unsplit",
            [
                *("cut", "identical", "largest logit difference", "relative logit error"),
                *("bytes a token", "peak RSS, MB"),
            ],
            [
                (
                    f"{v.head_blocks}+{v.tail_blocks}",
                    f"{v.identical}/{v.prompts}",
                    f"{v.max_abs_logit_diff:.2e}",
                    f"{v.relative_logit_error:.2e}",
                    "{up:.0f} up, {down:.0f} down".format(**v.bytes_per_decode_token),
                    " and ".join(
                        f"{v.peak_rss[part] / 1e6:.0f} {part}" for part in ("client", "trunk")
                    ),
                )
                for v in verdicts
            ],
        )
    if any(verdict.failed for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def loadtest(
    config: options.Config = None,
    set_: options.Overrides = None,
    as_json: options.AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report as JSON, Markdown and PNG.")
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Load the running system of the config's broker.")
    ] = False,
    clients: Annotated[int, typer.Option(min=1, max=20_000, help="Connections.")] = 16,
    sessions: Annotated[int, typer.Option(min=1, max=1024, help="Sessions a client.")] = 1,
    full: Annotated[
        bool, typer.Option("--full", help="Clients with head and tail; else replayed states.")
    ] = False,
    arrivals: Annotated[
        str, typer.Option(help="`closed`, `poisson:RATE`, `bursts:RATE,SIZE`, `trace:FILE`.")
    ] = "closed",
    prompt: Annotated[str, typer.Option(help="Prompt tokens: 64, 32-128 or 100~0.5.")] = "64",
    new: Annotated[str, typer.Option(help="New tokens, in the same forms.")] = "32",
    link: Annotated[
        str, typer.Option(help="`lan`, `wan`, `mobile` or DELAY_MS,JITTER_MS,MBPS,LOSS.")
    ] = "lan",
    duration: Annotated[float, typer.Option(min=1, help="Seconds, warm-up included.")] = 20.0,
    warmup: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds of the duration, at its start, that are not measured.",
            show_default="3, or a quarter of the duration if that is less",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Load processes.")] = 1,
    stops: Annotated[float, typer.Option(min=0, max=1, help="Share cancelled half way.")] = 0.0,
    vanishes: Annotated[
        float, typer.Option(min=0, max=1, help="Share whose client leaves without a word.")
    ] = 0.0,
    slo_ttft: Annotated[float, typer.Option(min=1, help="ms; slower is not good.")] = 2000.0,
    slo_tpot: Annotated[float, typer.Option(min=1, help="ms; slower is not good.")] = 200.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.")] = 0,
) -> None:
    """Load a system with simulated clients; report latency, throughput and fairness.

    Exits 1 if no request succeeded.
    """
    from fedsea_mq.cli.load_options import plan_from
    from fedsea_mq.cli.loadtest import loadtest as run

    plan = plan_from(
        arrivals,
        link,
        sessions=(sessions,) * clients,
        kind="full" if full else "thin",
        prompt=prompt,
        new=new,
        duration_s=duration,
        warmup_s=warmup,
        stops=stops,
        vanishes=vanishes,
        slo={"ttft_ms": slo_ttft, "tpot_ms": slo_tpot},
        seed=seed,
    )
    settings = _quiet(config, set_)
    _run(run(settings, plan, processes=processes, join=join, out=out, as_json=as_json))


@app.command(name="eval")
def evaluate(
    config: options.Config = None,
    set_: options.Overrides = None,
    task: Annotated[
        str | None, typer.Option(help="superglue/..., xsum, coqa, embedded/... or jsonl:PATH.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The task's file, folder or hub id; else its own on the hub.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Of the task's data.")] = Split.VALIDATION,
    count: Count = 200,
    seed: Annotated[int, typer.Option(help="Of the worlds, or of which examples.")] = 1000,
    join: Annotated[bool, typer.Option(help="Use the running broker of the settings.")] = False,
    adapter: options.Adapter = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a task, or the embedded three, with the settings' noise and without."""
    settings = _with_adapter(_quiet(config, set_), adapter)
    if task is None and data is not None:
        raise ConfigError("--data: of which --task?")
    from fedsea_mq.tasks.registry import find

    chosen = None if task is None else find(task, data)
    from fedsea_mq.cli import score

    said: dict[str, Any]
    if chosen is None:
        asked, said = score.embedded(count, seed), {"n": count}
    else:
        one = score.Asked.of(chosen, Wanted(split, count, seed))
        asked, said = [one], {"task": task, "n": one.units, "answers": len(one.examples)}
    noises: list[dict[str, Any]] = [settings.noise.model_dump(mode="json"), dict(NOISE_OFF)]
    noised, noise_free = _run(score.score(settings, noises, asked, join=join))
    if as_json:
        print_json({**noised.as_json(), "noise_off": noise_free.as_json(), **said})
    else:
        score.print_scores(task or "embedded tasks, held-out worlds", [noise_free, noised])


@app.command()
def sweep(
    config: options.Config = None,
    set_: options.Overrides = None,
    scales: Annotated[str, typer.Option(help="Relative noise scales, comma-separated.")] = (
        "0.05,0.1,0.15,0.2,0.25,0.3,0.4,0.5,0.7"
    ),
    points: Annotated[float, typer.Option(help="Loss allowed in any task.")] = 1.0,
    count: Count = 500,
    seed: Annotated[int, typer.Option(help="Seed of the held-out worlds.")] = 1000,
    as_json: options.AsJson = False,
) -> None:
    """Find the largest noise at which no embedded task loses more than a point."""
    from fedsea_mq.cli import score

    settings = _quiet(config, set_)
    noises: list[dict[str, Any]] = [dict(NOISE_OFF)]
    noises += [{"mode": "relative", "scale": scale} for scale in _numbers(scales)]
    asked = score.embedded(count, seed)
    noise_free, *noised = _run(score.score(settings, noises, asked, join=False))
    chosen = score.largest_harmless(noise_free, noised, points)
    if as_json:
        print_json(
            {
                "noise_off": noise_free.as_json(),
                "sweep": [one.as_json() for one in noised],
                "largest_within_points": chosen.as_json() if chosen is not None else None,
                "points": points,
                "n": count,
            }
        )
        return
    score.print_scores("noise sweep, held-out worlds", [noise_free, *noised])
    if chosen is None:
        console.print(f"even the smallest scale costs more than {points:g} points")
    else:
        console.print(
            f"largest within {points:g} points: {chosen.sigma_over_head_rms:.2f} of the head "
            f"output's RMS (sigma {chosen.sigma:.4f})"
        )


@app.command()
def status(
    config: options.Config = None,
    set_: options.Overrides = None,
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show nodes, sessions and tokens/s, live until Ctrl-C."""
    from fedsea_mq.cli.watch import status as run

    _run(run(Settings.load(config, set_ or []), as_json=as_json, once=once))


@app.command()
def health(
    trunks: Annotated[int, typer.Option(min=0, help="Nodes that must take sessions.")] = 1,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="A node that must be registered.")
    ] = None,
    config: options.Config = None,
    set_: options.Overrides = None,
) -> None:
    """Exit 0 if the broker answers and enough trunk nodes take sessions, else 1 and say why.

    `--trunks 0` asks whether the broker lives, with `--node` whether a node does. A broker that
    does not answer is waited for 5 s.
    """
    from fedsea_mq.cli.health import health as run
    from fedsea_mq.entry import configure_logging

    settings = Settings.load(config, set_ or [], ["log.level=error"])
    configure_logging(settings.log)
    console.print(_run(run(settings, trunks, node)), soft_wrap=True)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--scales {text!r}: expected comma-separated numbers") from None


def _sampling(**fields: Any) -> Any:
    from fedsea_mq.model.sampling import SamplingSettings

    try:
        return SamplingSettings(**fields)
    except ValidationError as error:
        raise ConfigError(explain(error, as_options=True)) from None


def _quiet(config: Path | None, overrides: list[str] | None) -> Settings:
    """Settings of a command that prints results: logs only what went wrong, unless asked."""
    return Settings.load(config, overrides or [], ["log.level=warning"])


def _with_adapter(settings: Settings, name: str | None) -> Settings:
    return settings if name is None else settings.replace(client={"adapter": name})


def _arguments(config: Path | None, overrides: list[str] | None) -> list[str]:
    arguments = ["--config", str(config)] if config is not None else []
    for override in overrides or []:
        arguments += ["--set", override]
    return arguments


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def main() -> None:
    """Entry point of the `fedsea` command: errors in one line, exit status 2 for bad settings."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (FedSeaError, BaseExceptionGroup) as error:
        if not all(isinstance(leaf, FedSeaError) for leaf in leaves(error)):
            raise
        said = {f"{type(leaf).__name__}: {leaf}" for leaf in leaves(error)}
        # Not cut to the width of a terminal that may not be there: paths stay whole.
        progress_console.print("\n".join(sorted(said)), style="red", markup=False, soft_wrap=True)
        if any(isinstance(leaf, PeerUnreachable) for leaf in leaves(error)):
            progress_console.print("Is the system up? `fedsea up` starts one on this machine.")
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
