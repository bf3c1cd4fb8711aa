"""The commands about storage."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import click
from rich.filesize import decimal

from aios.agents import connect
from aios.syscalls import sto as s

from .. import render
from ..options import PATH, VERSION, field
from ..output import agreed, json_option, progress, show, whole

owner_option = click.option(
    "--owner", default="", metavar="/NAME",
    help="Whose objects: an agent's name below those of who started it. [default: a person's]",
)  # fmt: skip


@click.group()
def sto() -> None:
    """Storage: versioned objects, kept and shared.

    Every object has an owner: an agent, as /NAME or /PARENT/NAME, or a person.

    \b
    Examples:
      aios sto put notes/plan.md plan.md --tag work
      aios sto get notes/plan.md
      aios sto list --owner /writer
      aios sto share notes /writer --write
    """


@sto.command("list")
@click.argument("prefix", default="")
@click.option("--all", "everyone", is_flag=True, help="Of every owner.")
@click.option("--deleted", is_flag=True, help="What was deleted as well.")
@owner_option
@json_option
@click.pass_obj
def list_(
    home: Path, prefix: str, everyone: bool, deleted: bool, owner: str, as_json: bool
) -> None:
    """List objects whose path begins with PREFIX.

    Objects of one owner or, with --all, of all owners.

    \b
    Examples:
      aios sto list notes/
      aios sto list --all --json
    """
    with connect(home, "aios-sto") as aios:
        owners = [holding.owner for holding in aios.sto_owners()] if everyone else [owner]
        found = [
            info for each in owners for info in aios.sto_list(prefix, deleted=deleted, owner=each)
        ]
    show(found, as_json, render.versions(found))


@sto.command()
@click.argument("path", type=PATH)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default="-")
@click.option("--version", type=VERSION, help="An earlier one.")
@owner_option
@click.pass_obj
def get(home: Path, path: str, file: Path, version: int | None, owner: str) -> None:
    """Write a content to FILE, or to stdout.

    Byte by byte as it was put; in a terminal, what that cannot show is escaped.

    \b
    Examples:
      aios sto get notes/plan.md
      aios sto get photo copy.jpg --version 2
    """
    done = 0
    with connect(home, "aios-sto") as aios, progress() as tell, whole(file) as out:
        for piece in aios.sto_stream(path, version, owner=owner):
            done += out.write(piece)
            tell(f"{decimal(done)} read")


@sto.command()
@click.argument("path", type=PATH)
@click.argument("file", type=click.File("rb"), default="-")
@click.option(
    "--tag",
    "tags",
    multiple=True,
    type=field(s.Put, "tags"),
    help="A tag; several with several of these.",
)
@click.option(
    "--media",
    default="",
    type=field(s.Put, "media"),
    help="A media type: text/markdown, image/png, ...",
)
@click.option(
    "--if-version", type=field(s.Put, "if_version"), metavar="N",
    help="Only if this is the newest; 0: only a new object.",
)  # fmt: skip
@owner_option
@json_option
@click.pass_obj
def put(
    home: Path, path: str, file: IO[bytes], tags: tuple[str, ...], media: str,
    if_version: int | None, owner: str, as_json: bool,
) -> None:  # fmt: skip
    """Store FILE, or what stdin has, as a new version of PATH.

    \b
    Examples:
      aios sto put notes/plan.md plan.md --tag work --tag 2026
      echo "remember the milk" | aios sto put notes/milk
      aios sto put notes/milk list.txt --if-version 1
    """
    with connect(home, "aios-sto") as aios, progress() as tell:
        tell(f"storing {path}")
        info = aios.sto_put(path, file, tags=tags, media=media, if_version=if_version, owner=owner)
    show(info, as_json, done_line(info))


def done_line(info: s.Version) -> str:
    what = {"put": "stored", "delete": "deleted", "rollback": "restored", "purge": "purged"}
    size = f", {decimal(info.size)}" if info.what in ("put", "rollback") else ""
    return f"{what[info.what]} {info.path}: version {info.version}{size}"


@sto.command()
@click.argument("path", type=PATH)
@owner_option
@json_option
@click.pass_obj
def history(home: Path, path: str, owner: str, as_json: bool) -> None:
    """List the versions of an object, the newest first.

    \b
    Example:
      aios sto history notes/plan.md
    """
    with connect(home, "aios-sto") as aios:
        found = list(aios.sto_history(path, owner=owner))
    show(found, as_json, render.versions(found))


@sto.command()
@click.argument("path", type=PATH)
@click.argument("old", type=VERSION)
@click.argument("new", type=VERSION, required=False)
@owner_option
@json_option
@click.pass_obj
def diff(home: Path, path: str, old: int, new: int | None, owner: str, as_json: bool) -> None:
    """Show what changed in a text since version OLD.

    Up to version NEW, or to the newest.

    \b
    Examples:
      aios sto diff notes/plan.md 1
      aios sto diff notes/plan.md 1 3
    """
    with connect(home, "aios-sto") as aios:
        text = aios.sto_diff(path, old, new, owner=owner)
    if text or as_json:
        show({"diff": text}, as_json, text.rstrip("\n"))


@sto.command()
@click.argument("path", type=PATH)
@click.argument("version", type=VERSION)
@owner_option
@json_option
@click.pass_obj
def rollback(home: Path, path: str, version: int, owner: str, as_json: bool) -> None:
    """Make VERSION the newest again; those since stay in the history.

    \b
    Example:
      aios sto rollback notes/plan.md 2
    """
    with connect(home, "aios-sto") as aios:
        info = aios.sto_rollback(path, version, owner=owner)
    show(info, as_json, done_line(info))


@sto.command()
@click.argument("path", type=PATH)
@owner_option
@json_option
@click.pass_obj
def delete(home: Path, path: str, owner: str, as_json: bool) -> None:
    """Delete an object, but for its history.

    `aios sto rollback` brings it back.

    \b
    Example:
      aios sto delete notes/milk
    """
    with connect(home, "aios-sto") as aios:
        info = aios.sto_delete(path, owner=owner)
    show(info, as_json, done_line(info))


@sto.command()
@click.argument("path", type=PATH)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@owner_option
@json_option
@click.pass_obj
def purge(home: Path, path: str, yes: bool, owner: str, as_json: bool) -> None:
    """Drop an object with all its versions, for good.

    \b
    Example:
      aios sto purge notes/milk --yes
    """
    if not yes and not agreed(f"Drop all versions of {path}?"):
        raise click.Abort
    with connect(home, "aios-sto") as aios:
        info = aios.sto_purge(path, owner=owner)
    show(info, as_json, done_line(info))


@sto.command()
@click.argument("prefix", required=False)
@click.argument("to", metavar="/NAME|/NAME/*|GROUP", required=False, type=field(s.Share, "to"))
@click.option("--write", "mode", flag_value="write", help="For reading and writing.")
@click.option("--revoke", "mode", flag_value="none", help="Not any more.")
@owner_option
@json_option
@click.pass_obj
def share(
    home: Path, prefix: str | None, to: str | None, mode: str | None, owner: str, as_json: bool
) -> None:
    """Share PREFIX and all below it, or list what is shared.

    With an agent, with all that are below one, or with a group (`aios group set`); for reading,
    unless --write is given. An empty PREFIX is everything.

    \b
    Examples:
      aios sto share notes /reader
      aios sto share "" "/team/*" --write --owner /writer
      aios sto share notes /reader --revoke
      aios sto share
    """
    with connect(home, "aios-sto") as aios:
        if prefix is not None:
            if to is None:
                raise click.UsageError("with whom? Give a name, as /reader, or a group")
            aios.sto_share(prefix, to, mode or "read", owner=owner)
        grants = aios.sto_shares(owner)
    cells = [[grant.owner or "-", grant.prefix or "(all)", grant.to, grant.mode]
             for grant in grants]  # fmt: skip
    show(grants, as_json, render.columns(["owner", "prefix", "to", "mode"], cells))


COMMANDS = [sto]
