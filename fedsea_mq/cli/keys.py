"""`fedsea keygen` and `fedsea trust ...`: keys as files, and whose are trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsea_mq.cli import options
from fedsea_mq.cli.output import console, print_json, print_table
from fedsea_mq.protocol.bounded import Role
from fedsea_mq.security.identity import Party
from fedsea_mq.security.keys import read_public, write_pair
from fedsea_mq.security.operator_keys import sign_file, write_operator_pair
from fedsea_mq.security.trust import TrustFolder

trust = typer.Typer(no_args_is_help=True, help="Whose keys may connect here, and as what.")
Folder = Annotated[
    Path, typer.Option("--trust", metavar="DIR", help="As `security.trust` names it.")
]
As = Annotated[Party, typer.Argument(metavar="PARTY", help="client, trainer, trunk, aggregator.")]
_HERE = Path("trust")


def keygen(
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("keys"),
    name: Annotated[str, typer.Option(help="What the two files are called.")] = "fedsea",
    operator: Annotated[
        bool, typer.Option("--operator", help="A key that signs nodes' keys, and nothing else.")
    ] = False,
) -> None:
    """Make a key pair: NAME.key, which stays here, and NAME.pub, which others are given."""
    if operator:
        write_operator_pair(out, name)
        console.print(f"secret  {out / name}.key   mode 0600; keep it off every node")
        console.print(f"public  {out / name}.pub   clients name it as security.operator_key")
        return
    public = write_pair(out, name)
    console.print(f"secret  {out / name}.key   mode 0600; give it to nobody")
    console.print(f"public  {out / name}.pub   for whoever is to trust it")
    console.print(f"id      {public}")


@trust.command()
def add(
    party: As,
    file: Annotated[Path, typer.Argument(metavar="FILE.pub", help="The party's public key.")],
    name: Annotated[
        str | None, typer.Option(help="What it is called here.", show_default="the file's name")
    ] = None,
    folder: Folder = _HERE,
) -> None:
    """Trust a key; running processes see it within a second or two."""
    key = read_public(file)
    console.print(f"{TrustFolder(folder).add(party, name or file.stem, key)}  {key}")


@trust.command()
def remove(party: As, name: str, folder: Folder = _HERE) -> None:
    """Trust a key no more; its sessions end within a second or two."""
    trusted = TrustFolder(folder)
    of_party = [one for one in trusted.all() if one.party is party]
    keys = {one.key for one in of_party if one.name == name}
    trusted.remove(party, name)
    for one in of_party:
        if one.key in keys and one.name != name:
            console.print(f"warning: the same key is still trusted, as {party.value} {one.name}")


@trust.command()
def sign(
    role: Annotated[Role, typer.Argument(metavar="ROLE", help="trunk or aggregator.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.pub", help="The node's public key.")],
    key: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="The operator's secret key.")
    ] = Path("keys/operator.key"),
) -> None:
    """Sign a node's key for its role: the signature belongs beside the node's NAME.key."""
    console.print(f"{sign_file(key, role, file)}")


@trust.command(name="list")
def list_(folder: Folder = _HERE, as_json: options.AsJson = False) -> None:
    """Say whose keys are trusted."""
    rows = [(one.party.value, one.name, str(one.key)) for one in TrustFolder(folder).all()]
    if as_json:
        print_json([dict(zip(("party", "name", "key_id"), row, strict=True)) for row in rows])
    else:
        print_table(str(folder), ["party", "name", "id of the key"], rows)
