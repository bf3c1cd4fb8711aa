"""The commands about storage as a whole: tar files, checks, copies."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import IO, Any

import click
import msgspec
from rich.filesize import decimal

from aios.agents import Aios, connect
from aios.agents.sdk.connection import Pending
from aios.syscalls import sto as s

from ..archive import ObjectReader, header, reading
from ..options import Whole
from ..output import STREAM, json_option, progress, show, whole
from ..render import counted
from .storage import owner_option

# --- tar files ------------------------------------------------------------------------------------


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--prefix", default="", help="Only objects whose path begins so.")
@click.option("--all", "everyone", is_flag=True, help="Of every owner.")
@owner_option
@json_option
@click.pass_obj
def export_(home: Path, file: Path, prefix: str, everyone: bool, owner: str, as_json: bool) -> None:
    """Write objects into a tar file.

    Their newest versions, with their tags; - is stdout. An owner's objects are below a folder of
    that name; a person's are in person/.

    \b
    Examples:
      aios sto export backup.tar --all
      aios sto export notes.tar --prefix notes/
      aios sto export - | gzip > notes.tar.gz
    """
    count = 0
    with (
        connect(home, "aios-sto") as aios,
        whole(file) as out,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        progress(plain=not as_json) as tell,
    ):
        owners = [holding.owner for holding in aios.sto_owners()] if everyone else [owner]
        for each in owners:
            for info in aios.sto_list(prefix, owner=each):
                tar.addfile(header(info), ObjectReader(aios, info))
                count += 1
                tell(counted(count, "object"))
    if file != STREAM:
        show({"objects": count}, as_json, f"{counted(count, 'object')} in {file}")


@click.command("import")
@click.argument("file", type=click.File("rb"))
@json_option
@click.pass_obj
def import_(home: Path, file: IO[bytes], as_json: bool) -> None:
    """Store what `export` has written.

    As new versions, for the same owners.

    \b
    Examples:
      aios sto import backup.tar
      aios sto export - --home /other | aios sto import -
    """
    count = 0
    with (
        connect(home, "aios-sto") as aios,
        progress(plain=not as_json) as tell,
        reading(file) as members,
    ):
        for fields, content in members:
            aios.sto_put(data=content, **fields)
            count += 1
            tell(counted(count, "object"))
    show({"objects": count}, as_json, f"{counted(count, 'object')} stored")


# --- all of it ------------------------------------------------------------------------------------


@click.command()
@json_option
@click.pass_obj
def verify(home: Path, as_json: bool) -> int:
    """Check everything that is stored: sums, counts, contents. Exit code 1 if something is wrong.

    \b
    Example:
      aios sto verify
    """
    with connect(home, "aios-sto") as aios:
        report = msgspec.convert(followed(aios, aios.sto_verify(), as_json), s.Verified)
    lines = [*report.problems, (
        f"{counted(report.objects, 'object')}, {counted(report.versions, 'version')}, "
        f"{counted(report.chunks, 'chunk')}, {decimal(report.bytes)}: "
        f"{counted(len(report.problems), 'problem') if report.problems else 'no problems'}"
    )]  # fmt: skip
    show(report, as_json, "\n".join(lines))
    return 1 if report.problems else 0


@click.command()
@click.option("--keep", type=Whole(min=1), help="Versions that each object keeps.")
@json_option
@click.pass_obj
def compact(home: Path, keep: int | None, as_json: bool) -> None:
    """Drop old versions, and contents that nothing refers to.

    Versions are dropped with --keep alone.

    \b
    Examples:
      aios sto compact
      aios sto compact --keep 10
    """
    with connect(home, "aios-sto") as aios:
        report = msgspec.convert(followed(aios, aios.sto_compact(keep), as_json), s.Compacted)
    show(
        report,
        as_json,
        f"dropped: {counted(report.versions, 'version')}, {counted(report.chunks, 'stray chunk')}",
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def backup(home: Path, folder: Path, as_json: bool) -> int:
    """Copy memory and storage into a new FOLDER.

    The system runs on. Contents that are in a folder or bucket are copied into FOLDER/blobs. To use
    it, stop the system and put the copy's data.mdb into store/ of the home; docs/storage.md says
    where contents go. Exit code 1 if contents were missing.

    \b
    Example:
      aios sto backup /backups/monday
    """
    with connect(home, "aios-sto") as aios:
        call = aios.sto_backup(str(folder.absolute()))
        report = msgspec.convert(followed(aios, call, as_json), s.BackedUp)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    text = f"{decimal(size)} are in {folder}"
    if report.missing:
        text = f"missing: {counted(report.missing, 'chunk')}; `aios sto verify` names them\n{text}"
    told = {"folder": str(folder), "bytes": size, "missing": report.missing}
    show(told, as_json, text)
    return 1 if report.missing else 0


def followed(aios: Aios, call: Pending, as_json: bool) -> Any:
    """Show how far a call is, and return its final reply. Ctrl-C ends it in the kernel as well."""
    with progress(plain=not as_json) as tell:
        try:
            for piece in call:
                tell(f"{piece['done']} {piece['what']}")
        except KeyboardInterrupt:
            aios.cancel(call.id)
            raise
        return call.wait()


COMMANDS = (export_, import_, verify, compact, backup)
