"""`aios audit`: search the log of all calls and decisions, and verify that it is unchanged.

A process of its own reads the log: aios.kernel.audit, which the shell knows only as a program to
run. It needs the folder alone: no system has to run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import click
from rich.cells import cell_len
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.table import Table

from aios.syscalls.errors import BadInput

from .. import helper
from ..escape import as_json_text, folded, shown
from ..options import When, Whole, text_of
from ..output import at_terminal, bars, json_option, say, show, whole
from ..render import date_and_time, pairs

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

folder_option = click.option(
    "--log", "folder", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where the log is; default: audit in the AIOS home.",
)  # fmt: skip
key_option = click.option(
    "--key", metavar="KEY", help="Whose signatures count; default: those that audit/key lists."
)


@click.group()
def audit() -> None:
    """The audit log: every system call, and who made it.

    Each record says what was decided, and by which rule, and what came of it.

    \b
    Examples:
      aios audit tail -f
      aios audit search --decision denied --since 1h
      aios audit verify
    """


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a filter."""
    for option in (
        click.option("--until", type=When(), help="Before this time."),
        click.option("--since", type=When(), help="From this time on: 2026-01-31T12:00, 10m, 2h."),
        click.option("--decision", type=click.Choice(["allowed", "denied"])),
        click.option("--object", help="What it was about: a part of a path, a key, pid=7."),
        click.option("--call", help="A system call; * stands for any part: 'mem.*'."),
        click.option("--agent", help="/writer and what it started; or a pid."),
    ):
        command = option(command)
    return command


@audit.command()
@click.option("-n", "count", type=Whole(min=0), default=20, show_default=True, help="How many.")
@click.option("-f", "--follow", is_flag=True, help="Go on as records come, until Ctrl-C.")
@filters
@folder_option
@json_option
@click.pass_obj
def tail(
    home: Path, /, count: int, follow: bool, folder: Path | None, as_json: bool, **wanted: Any
) -> None:
    """Show the last records; with --json one a line.

    \b
    Examples:
      aios audit tail
      aios audit tail -f --agent /writer
    """
    action = "follow" if follow else "tail"
    records = said(home, folder, action, count=count, wanted=wanted)
    lines(records, as_json, "no records match")


@audit.command()
@filters
@folder_option
@json_option
@click.pass_obj
def search(home: Path, /, folder: Path | None, as_json: bool, **wanted: Any) -> None:
    """Show all records that match; with --json one a line.

    \b
    Examples:
      aios audit search --agent /writer --call 'sto.*'
      aios audit search --decision denied --since 2h
    """
    lines(said(home, folder, "search", wanted=wanted), as_json, "no records match")


@audit.command("export")
@filters
@folder_option
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def export_records(home: Path, /, target: Path, folder: Path | None, **wanted: Any) -> None:
    """Write records to TARGET (- for stdout), a JSON object a line.

    \b
    Example:
      aios audit export audit.jsonl --since 1d
    """
    with whole(target) as out:
        for kind, what in said(home, folder, "search", wanted=wanted):
            if kind == "record":
                out.write(f"{json.dumps(what)}\n".encode())


@audit.command("show")
@click.argument("number", type=Whole(min=0))
@folder_option
@json_option
@click.pass_obj
def show_record(home: Path, number: int, folder: Path | None, as_json: bool) -> None:
    """Show all that is known of record NUMBER.

    That is the outcome of an intent as well, and the receipt.

    \b
    Example:
      aios audit show 4711
    """
    found = ask(home, folder, "show", sequence=number)
    record = found["record"]
    wall = datetime.fromtimestamp(record["wall"] / 1e9).astimezone().isoformat()
    rows = [
        (name, value)
        for name, value in (record | {"wall": wall}).items()
        if value not in ("", None)
    ]
    rows.append(("receipt", f"{number} {found['head']}"))
    if other := found["other"]:
        rows.append((other["kind"], f"record {other['sequence']}: {line(other)[-1]}"))
    show(found, as_json, pairs(rows))


@audit.command()
@click.option("--receipts", type=FILE, help='A JSON array of [sequence, "head in hex"].')
@click.option("--checkpoint", type=FILE, help="A checkpoint that was kept elsewhere.")
@click.option("--proof", type=FILE, help="Verify this proof alone; no log is needed for that.")
@key_option
@folder_option
@json_option
@click.pass_obj
def verify(
    home: Path, receipts: Path | None, checkpoint: Path | None, proof: Path | None,
    key: str | None, folder: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Verify that the log is as it was written: exit code 1 if not.

    Receipts, a checkpoint or the key that you keep elsewhere show even changes by somebody with all
    rights on this machine.

    \b
    Examples:
      aios audit verify
      aios audit verify --receipts mine.json --json
      aios audit verify --proof record.tlog-proof --key "$(cat audit.key)"
    """
    kept = None if checkpoint is None else text_of(checkpoint)
    if proof is not None:
        found = ask(home, folder, "check", proof=text_of(proof), key=key, checkpoint=kept)
        show(found, as_json, proved(found))
        return 0
    with bar(as_json) as step:
        report = ask(
            home, folder, "verify", step, receipts=read_receipts(receipts), key=key, checkpoint=kept
        )
    show(report, as_json, verified(report))
    return 1 if report["problems"] else 0


@audit.command()
@click.argument("number", type=Whole(min=0))
@click.option("--growth", is_flag=True, help="That the log begins with its first NUMBER records.")
@folder_option
@json_option
@click.pass_obj
def prove(home: Path, number: int, growth: bool, folder: Path | None, as_json: bool) -> None:
    """Print a proof that record NUMBER is in the log.

    In the log as it was signed last. Whoever has the public key can verify it without the log:
    `aios audit verify --proof`.

    \b
    Examples:
      aios audit prove 4711 > record.tlog-proof
      aios audit prove --growth 4000 > growth.txt
    """
    found = ask(home, folder, "grown" if growth else "prove", sequence=number)
    if as_json:
        say(as_json_text(found))
    else:
        say(found["proof"], nl=False)


# --- the process that reads ----------------------------------------------------------------------


def said(home: Path, folder: Path | None, action: str, **fields: Any) -> Iterator[tuple[str, Any]]:
    """Yield the messages of the process that reads the log, as (kind, body). Raises AiosError."""
    where = str(folder.absolute() if folder else home / "audit")
    request = {"action": action, "folder": where, **fields}
    return helper.said("aios.kernel.audit", request, "reads the log")


def ask(
    home: Path, folder: Path | None, action: str,
    step: Callable[[dict[str, int]], None] = lambda _: None, **fields: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the report of the process that reads the log."""
    return helper.report(said(home, folder, action, **fields), step)


def read_receipts(path: Path | None) -> list[list[Any]]:
    """Read the receipts in a file. Raises BadInput if it holds something else."""
    if path is None:
        return []
    try:
        found = json.loads(text_of(path))
        return [[int(sequence), bytes.fromhex(head).hex()] for sequence, head in found]
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"{path} holds no receipts: {error}", 'write [[7, "ab12..."], ...]'
        ) from error


# --- what is shown -------------------------------------------------------------------------------

TITLES = ("number", "time", "pid", "agent", "kind", "call", "about")
WIDTHS = (8, 19, 5, 16, 7, 16, 0)
BELOW = " " * (WIDTHS[0] + 1)


def lines(said: Iterator[tuple[str, Any]], as_json: bool, nothing: str) -> None:
    """Print each record in a line, as it comes."""
    count = 0
    for kind, record in said:
        if kind != "record":
            break
        if as_json:
            say(json.dumps(record))
        else:
            if not count:
                say(row([title.upper() for title in TITLES]))
            say(row(line(record)))
        count += 1
    if not count and not as_json:
        say(nothing, err=True)


def row(cells: list[str]) -> str:
    """Join cells to a line. In a terminal that is too narrow, the last cell goes below the
    others."""
    padded = [shown(cell).ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)]
    whole = " ".join(padded).rstrip()
    columns = get_terminal_size().columns
    if not at_terminal() or cell_len(whole) <= columns:
        return whole
    return "\n".join([" ".join(padded[:-1]).rstrip(), *folded(padded[-1], columns, BELOW)])


def line(record: dict[str, Any]) -> list[str]:
    at = date_and_time(record["wall"] / 1e9)
    what = [record["result"], record["rule"] and f"by {record['rule']}", record["object"]]
    if record["kind"] == "outcome":
        what.append(f"of {record['intent']}" if record["intent"] else "of an earlier kernel's")
    return [
        str(record["sequence"]), at, str(record["pid"] or "-"), record["principal"] or "-",
        record["kind"], record["call"], "  ".join(filter(None, what)),
    ]  # fmt: skip


def proved(found: dict[str, Any]) -> str:
    if "grown" in found:
        old, new = found["grown"]
        return f"the log of {new} records begins with the one of {old}"
    record = found["record"]
    return f"record {record['sequence']} is in the log of {found['signed']} records:\n" + row(
        line(record)
    )


def verified(report: dict[str, Any]) -> Table | str:
    count, first = report["records"] - report["first"], report["first"]
    rows: list[tuple[str, object]] = [
        ("records", f"{count}, from {first} on" if first else count),
        ("signed", f"up to {report['signed']}, by {report['checkpoints']} checkpoints"),
        ("receipts", report["receipts"]),
    ]
    if not report["problems"]:
        return pairs([*rows, ("verdict", "as it was written")])
    for each in report["problems"]:
        where = "" if each["sequence"] is None else f"record {each['sequence']}: "
        rows.append(("PROBLEM", where + each["what"]))
    return pairs(rows)


@contextmanager
def bar(as_json: bool) -> Iterator[Callable[[dict[str, int]], None]]:
    """Show on stderr, in a terminal, how many segments are done."""
    if as_json or not at_terminal(err=True):
        yield lambda _: None
        return
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with bars("segments", *columns, transient=True) as display:
        task = display.add_task("", total=None)
        yield lambda step: display.update(task, completed=step["done"], total=step["total"])


COMMANDS = (audit,)
