"""The commands about a model's weights."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.output import print_json, print_table


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

    settings = options.quiet(None, set_).replace(
        model={"path": model, "head_blocks": head, "tail_blocks": tail, "dtype": dtype}
    )
    asks = Ask(prompts, count, new_tokens, max_prompt_tokens, adapter)
    verdicts = asyncio.run(run(settings, asks, every_cut=every_cut))
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
