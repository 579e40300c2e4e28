"""`fedsea adapters ...`: LoRA adapters as files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.output import console, print_json, print_table
from fedsea_mq.errors import AdapterError

adapters = typer.Typer(no_args_is_help=True, help="Merge, split and show LoRA adapters.")
Out = Annotated[Path, typer.Option(help="Folder to write into; new or empty.")]


@adapters.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PART_DIR...", help="The parts' folders.")],
    out: Out,
) -> None:
    """Write the adapters of parts as one, which peft loads on the unsplit model."""
    from fedsea_mq.model.adapters import merge_adapters

    _refuse_full(out)
    merge_adapters(parts, out)
    console.print(f"{out}")


@adapters.command()
def split(
    adapter: Annotated[Path, typer.Argument(metavar="DIR", help="Of the unsplit model.")],
    out: Out,
    model: Annotated[str, typer.Option(help="`embedded`, a folder or a hub id.")] = "embedded",
    head: Annotated[int, typer.Option(min=0, help="Decoder blocks in the head.")] = 1,
    tail: Annotated[int, typer.Option(min=0, help="Decoder blocks in the tail.")] = 1,
) -> None:
    """Write an adapter as one folder a part, each of which says what it is part of."""
    from fedsea_mq.model.adapters import split_adapter
    from fedsea_mq.model.checkpoint import Checkpoint
    from fedsea_mq.model.partition import Cut

    _refuse_full(out)
    for part in split_adapter(adapter, Cut(head, tail), Checkpoint.open(model).blocks, out):
        console.print(f"{out / part}")


@adapters.command()
def show(
    adapter: Annotated[Path, typer.Argument(metavar="DIR", help="Of a part, or of the whole.")],
    as_json: options.AsJson = False,
) -> None:
    """Say what an adapter is: its settings, its blocks and the set that it is part of."""
    said = _said(adapter)
    if as_json:
        print_json(said)
    else:
        said |= {key: said[key][:12] for key in ("digest", "set")}
        print_table(str(adapter), ["", ""], [(key, _cell(value)) for key, value in said.items()])


def _said(folder: Path) -> dict[str, Any]:
    from fedsea_mq.model.adapters import AdapterFolder

    opened = AdapterFolder.open(folder)
    of = opened.adapter_set()
    return {
        **asdict(opened.settings),
        "blocks": sorted(opened.blocks),
        "tensors": len(opened.stored),
        "bytes": sum(tensor.nbytes for tensor in opened.stored.values()),
        "digest": opened.digest(),
        "set": of.digest,
        "set_blocks": sorted(of.blocks),
    }


def _cell(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _refuse_full(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AdapterError(f"{out}: not an empty folder")
