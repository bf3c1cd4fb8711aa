"""The commands about agents' memory and their interaction logs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgpack

from aios.agents import Aios, connect
from aios.syscalls.errors import BadInput, NotFound

from . import render
from .output import json_option, show, whole

FORMAT = {"aios": "memory", "version": 1}
BATCH = 16 << 10  # bytes of items, about, that one call of an import takes

who_argument = click.argument("who", metavar="PID|/NAME")
space_option = click.option("--space", default="main", show_default=True)


def target(who: str) -> dict[str, Any]:
    """WHO as arguments of the SDK: a PID, or names like /writer/helper."""
    if who.isascii() and who.isdigit():
        return {"pid": int(who)}
    if who.startswith("/"):
        return {"principal": who}
    raise click.BadParameter(f"{who!r} is neither a PID nor a name that begins with /")


@click.group()
def mem() -> None:
    """Agents' memory: spaces of keys and values; and what they did.

    An agent is named by its PID, or as /NAME, below the names of those that started it:
    /writer/helper.

    \b
    Examples:
      aios mem list
      aios mem put /writer style "short sentences"
      aios mem log /writer -n 5
    """


@mem.command("list")
@click.argument("who", metavar="[PID|/NAME]", required=False)
@click.argument("prefix", default="")
@space_option
@json_option
@click.pass_obj
def list_(home: Path, who: str | None, prefix: str, space: str, as_json: bool) -> None:
    """Who has memory; or the items of one agent, whose keys begin with PREFIX.

    \b
    Examples:
      aios mem list
      aios mem list /writer --json
      aios mem list 12 draft --space notes
    """
    with connect(home, "aios-mem") as aios:
        if who is None:
            found = aios.mem_spaces()
            show(found, as_json, render.memories(found))
            return
        items = list(aios.mem_items(prefix, space=space, **target(who)))
    rows = ((key, render.line(value)) for key, value in items)
    show(dict(items), as_json, render.columns(["key", "value"], rows))


@mem.command()
@who_argument
@click.argument("key")
@space_option
@json_option
@click.pass_obj
def get(home: Path, who: str, key: str, space: str, as_json: bool) -> None:
    """Print a value: text and bytes as they are, anything else as JSON.

    \b
    Example:
      aios mem get /writer style
    """
    with connect(home, "aios-mem") as aios:
        found = aios.mem_get([key], space=space, **target(who))
    if key not in found:
        raise NotFound(f"{who} has no key {key!r} in space {space}", "`aios mem list` shows keys")
    value = found[key]
    if isinstance(value, bytes) and not as_json:
        sys.stdout.buffer.write(value)
    else:
        show(value, as_json, render.value(value))


@mem.command()
@who_argument
@click.argument("key")
@click.argument("text", required=False)
@click.option("--value-json", metavar="JSON", help="The value, when it is not text.")
@space_option
@click.pass_obj
def put(
    home: Path, who: str, key: str, text: str | None, value_json: str | None, space: str
) -> None:
    """Set a value: TEXT, or what stdin has, as bytes where that is no text in UTF-8. Memory of
    /NAME is kept until that agent comes.

    \b
    Examples:
      aios mem put /writer style "short sentences"
      aios mem put /writer limits --value-json '{"words": 200}'
      aios mem put 12 notes < notes.txt
    """
    if value_json is not None:
        try:
            value = json.loads(value_json)
        except ValueError as error:
            raise click.BadParameter(f"--value-json: {error}") from error
    else:
        value = from_stdin() if text is None else text
    with connect(home, "aios-mem") as aios:
        aios.mem_put({key: value}, space=space, **target(who))


def from_stdin() -> str | bytes:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


@mem.command()
@who_argument
@click.argument("keys", nargs=-1, required=True)
@space_option
@json_option
@click.pass_obj
def delete(home: Path, who: str, keys: tuple[str, ...], space: str, as_json: bool) -> None:
    """Remove keys.

    \b
    Example:
      aios mem delete /writer style limits
    """
    with connect(home, "aios-mem") as aios:
        count = aios.mem_delete(keys, space=space, **target(who))
    show({"deleted": count}, as_json, f"{count} deleted")


@mem.command()
@who_argument
@click.option("--space", help="One space only.")
@click.pass_obj
def clear(home: Path, who: str, space: str | None) -> None:
    """Remove everything, or all of one space.

    \b
    Example:
      aios mem clear /writer --space notes
    """
    with connect(home, "aios-mem") as aios:
        aios.mem_clear(space, **target(who))


@mem.command()
@who_argument
@click.pass_obj
def keep(home: Path, who: str) -> None:
    """Have an agent's memory outlive it: the next agent of that name gets it.

    \b
    Example:
      aios mem keep 12
    """
    with connect(home, "aios-mem") as aios:
        aios.mem_keep(True, **target(who))


@mem.command()
@who_argument
@click.pass_obj
def forget(home: Path, who: str) -> None:
    """Not keep it: what an ended agent left is gone, that of a live one ends with it.

    \b
    Example:
      aios mem forget /writer
    """
    with connect(home, "aios-mem") as aios:
        aios.mem_keep(False, **target(who))


@mem.command()
@who_argument
@click.option("--count", "-n", type=click.IntRange(min=1), help="The newest only.")
@json_option
@click.pass_obj
def log(home: Path, who: str, count: int | None, as_json: bool) -> None:
    """What an agent generated, sent and received: the kernel writes that down.

    \b
    Examples:
      aios mem log /writer
      aios mem log 12 -n 3 --json
    """
    entries: list[Any] = []
    after = None
    with connect(home, "aios-mem") as aios:
        while count is None or len(entries) < count:
            page = aios.mem_log(after=after, back=count is not None, **target(who))
            entries += page.entries
            after = page.after
            if after is None:
                break
    if count is not None:
        entries = entries[:count][::-1]
    show(entries, as_json, render.interactions(entries))


@mem.command()
@who_argument
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default="-")
@click.pass_obj
def export(home: Path, who: str, file: Path) -> None:
    """Write all of an agent's memory to FILE, or stdout, as msgpack.

    \b
    Examples:
      aios mem export /writer writer.mem
      aios mem export /writer | aios mem import /copy -
    """
    count = 0
    with connect(home, "aios-mem") as aios, whole(file) as out:
        out.write(msgpack.packb(FORMAT))
        for space in [s.name for m in aios.mem_spaces(**target(who)) for s in m.spaces]:
            for key, value in aios.mem_items(space=space, **target(who)):
                out.write(msgpack.packb([space, key, value]))
                count += 1
        out.write(msgpack.packb(count))


@mem.command("import")
@who_argument
@click.argument("file", type=click.File("rb"))
@json_option
@click.pass_obj
def import_(home: Path, who: str, file: BinaryIO, as_json: bool) -> None:
    """Put what was exported to FILE; keys that are there are replaced.

    \b
    Example:
      aios mem import /writer writer.mem
    """
    items = read(file)
    count = 0
    with connect(home, "aios-mem") as aios:
        for space, group in groupby(items, key=lambda item: item[0]):
            count += put_all(aios, {key: value for _, key, value in group}, space, target(who))
    show({"imported": count}, as_json, f"{count} imported")


def read(file: BinaryIO) -> list[tuple[str, str, Any]]:
    """Raises BadInput for what is no export, or not all of one."""
    try:
        head, *items, count = msgpack.Unpacker(file, strict_map_key=False)
        good = (head, count) == (FORMAT, len(items)) and all(
            isinstance(space, str) and isinstance(key, str) for space, key, _ in items
        )
    except (ValueError, TypeError, msgpack.UnpackException):
        good = False
    if not good:
        raise BadInput(
            f"{file.name} is no export of memory, or not all of one", "`aios mem export` makes one"
        )
    return [tuple(item) for item in items]


def put_all(aios: Aios, items: dict[str, Any], space: str, whose: dict[str, Any]) -> int:
    for batch in batches(items):
        aios.mem_put(batch, space=space, **whose)
    return len(items)


def batches(items: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """As many at once as a call takes."""
    batch: dict[str, Any] = {}
    size = 0
    for key, value in items.items():
        grown = len(msgpack.packb([key, value]))
        if batch and (size + grown > BATCH or len(batch) == 256):
            yield batch
            batch, size = {}, 0
        batch[key] = value
        size += grown
    if batch:
        yield batch


COMMANDS = (mem,)
