"""The commands about agents' memory and their interaction logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgpack

from aios.agents import Aios, connect
from aios.syscalls import mem as mem_calls
from aios.syscalls.errors import BadInput, NotFound, StoreDamaged

from .. import render
from ..completion import live_processes
from ..escape import brief
from ..options import WHO, Whole, field, json_value
from ..output import done, json_option, show, stdout, whole
from ..who import pid_of

FORMAT = {"aios": "memory", "version": 1}
BATCH_BYTES = 16 << 10  # of items, about, in one call of an import

SPACE = field(mem_calls.PutItems, "space", "a name: letters, digits and . _ + -")
KEY = field(mem_calls.GetItems, "keys")
who_argument = click.argument(
    "who", metavar="PID|NAME|/NAME", type=WHO, shell_complete=live_processes
)
space_option = click.option("--space", type=SPACE, default="main", show_default=True)


def target(aios: Aios, who: int | str) -> dict[str, Any]:
    """Return `who` as arguments of the SDK: a PID, or names like /writer/helper. Raises NotFound if
    no agent that is alive has the name."""
    if isinstance(who, str) and who.startswith("/"):
        return {"principal": who}
    try:
        return {"pid": pid_of(aios, who)}
    except NotFound as error:
        raise NotFound(error.message, f"what an ended agent has left is named as /{who}") from error


@click.group()
def mem() -> None:
    """Agents' memory: spaces of keys and values; and what they did.

    An agent is named by its PID or its name, or as /NAME, below the names of those that started it:
    /writer/helper. As /NAME it need not be alive.

    \b
    Examples:
      aios mem list
      aios mem put /writer style "short sentences"
      aios mem log /writer -n 5
    """


@mem.command("list")
@click.argument(
    "who", metavar="[PID|NAME|/NAME]", type=WHO, required=False, shell_complete=live_processes
)
@click.argument("prefix", default="", type=field(mem_calls.Scan, "prefix"))
@space_option
@json_option
@click.pass_obj
def list_(home: Path, who: int | str | None, prefix: str, space: str, as_json: bool) -> None:
    """List who has memory, or the items of one agent.

    With PREFIX, those whose keys begin with it.

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
        items, damage = whole_items(aios.mem_items(prefix, space=space, **target(aios, who)))
    rows = ((key, brief(render.value(value))) for key, value in items.items())
    show(items, as_json, render.columns(["key", "value"], rows))
    if damage is not None:
        raise damage


def whole_items(found: Iterator[tuple[str, Any]]) -> tuple[dict[str, Any], StoreDamaged | None]:
    """Return the items that are whole, and the error that names the others, if there are any."""
    items = {}
    try:
        for key, value in found:
            items[key] = value
    except StoreDamaged as error:
        return items, error
    return items, None


@mem.command()
@who_argument
@click.argument("key", type=KEY)
@space_option
@json_option
@click.pass_obj
def get(home: Path, who: int | str, key: str, space: str, as_json: bool) -> None:
    """Print a value: text and bytes as they are, anything else as JSON.

    \b
    Example:
      aios mem get /writer style
    """
    with connect(home, "aios-mem") as aios:
        found = aios.mem_get([key], space=space, **target(aios, who))
    if key not in found:
        raise NotFound(f"{who} has no key {key!r} in space {space}", "`aios mem list` shows keys")
    value = found[key]
    if isinstance(value, bytes) and not as_json:
        with stdout() as out:
            out.write(value)
    else:
        show(value, as_json, render.value(value))


@mem.command()
@who_argument
@click.argument("key", type=KEY)
@click.argument("text", required=False)
@click.option("--value-json", metavar="JSON", help="The value, when it is not text.")
@space_option
@json_option
@click.pass_obj
def put(
    home: Path, who: int | str, key: str, text: str | None, value_json: str | None, space: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Set a value: TEXT, or what stdin has.

    Bytes that are no UTF-8 are stored as they are. Memory of /NAME is kept until that agent comes.

    \b
    Examples:
      aios mem put /writer style "short sentences"
      aios mem put /writer limits --value-json '{"words": 200}'
      aios mem put 12 notes < notes.txt
    """
    if value_json is not None:
        value = json_value(value_json, "--value-json")
    else:
        value = from_stdin() if text is None else text
    with connect(home, "aios-mem") as aios:
        aios.mem_put({key: value}, space=space, **target(aios, who))
    done({"key": key, "space": space}, as_json)


def from_stdin() -> str | bytes:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


@mem.command()
@who_argument
@click.argument("keys", nargs=-1, required=True, type=KEY)
@space_option
@json_option
@click.pass_obj
def delete(home: Path, who: int | str, keys: tuple[str, ...], space: str, as_json: bool) -> None:
    """Remove keys.

    \b
    Example:
      aios mem delete /writer style limits
    """
    with connect(home, "aios-mem") as aios:
        count = aios.mem_delete(keys, space=space, **target(aios, who))
    show({"deleted": count}, as_json, f"{count} deleted")


@mem.command()
@who_argument
@click.option("--space", type=SPACE, help="One space only.")
@json_option
@click.pass_obj
def clear(home: Path, who: int | str, space: str | None, as_json: bool) -> None:
    """Remove everything, or all of one space.

    \b
    Example:
      aios mem clear /writer --space notes
    """
    with connect(home, "aios-mem") as aios:
        aios.mem_clear(space, **target(aios, who))
    done({"cleared": space or "all"}, as_json)


@mem.command()
@who_argument
@json_option
@click.pass_obj
def keep(home: Path, who: int | str, as_json: bool) -> None:
    """Have an agent's memory outlive the agent.

    The next agent of that name gets it.

    \b
    Example:
      aios mem keep 12
    """
    with connect(home, "aios-mem") as aios:
        aios.mem_keep(True, **target(aios, who))
    done({"keep": True}, as_json)


@mem.command()
@who_argument
@json_option
@click.pass_obj
def forget(home: Path, who: int | str, as_json: bool) -> None:
    """Drop an agent's memory with the agent.

    The memory of an ended agent is gone at once.

    \b
    Example:
      aios mem forget /writer
    """
    with connect(home, "aios-mem") as aios:
        aios.mem_keep(False, **target(aios, who))
    done({"keep": False}, as_json)


@mem.command()
@who_argument
@click.option("--count", "-n", type=Whole(min=1), help="The newest only.")
@json_option
@click.pass_obj
def log(home: Path, who: int | str, count: int | None, as_json: bool) -> None:
    """Show what an agent generated, sent and received.

    The kernel writes that down.

    \b
    Examples:
      aios mem log /writer
      aios mem log 12 -n 3 --json
    """
    entries: list[Any] = []
    after = None
    with connect(home, "aios-mem") as aios:
        whose = target(aios, who)
        while count is None or len(entries) < count:
            page = aios.mem_log(after=after, back=count is not None, **whose)
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
def export(home: Path, who: int | str, file: Path) -> None:
    """Write all of an agent's memory to FILE, or stdout, as msgpack.

    \b
    Examples:
      aios mem export /writer writer.mem
      aios mem export /writer | aios mem import /copy -
    """
    count = 0
    with connect(home, "aios-mem") as aios, whole(file) as out:
        whose = target(aios, who)
        out.write(msgpack.packb(FORMAT))
        for space in [s.name for m in aios.mem_spaces(**whose) for s in m.spaces]:
            for key, value in aios.mem_items(space=space, **whose):
                out.write(msgpack.packb([space, key, value]))
                count += 1
        out.write(msgpack.packb(count))


@mem.command("import")
@who_argument
@click.argument("file", type=click.File("rb"))
@json_option
@click.pass_obj
def import_(home: Path, who: int | str, file: BinaryIO, as_json: bool) -> None:
    """Put what was exported to FILE; keys that are there are replaced.

    \b
    Example:
      aios mem import /writer writer.mem
    """
    items = read(file)
    count = 0
    with connect(home, "aios-mem") as aios:
        whose = target(aios, who)
        for space, group in groupby(items, key=lambda item: item[0]):
            for batch in batches({key: value for _, key, value in group}):
                aios.mem_put(batch, space=space, **whose)
                count += len(batch)
    show({"imported": count}, as_json, f"{count} imported")


def read(file: BinaryIO) -> list[tuple[str, str, Any]]:
    """Read the items of an export. Raises BadInput if it is none, or not all of one."""
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


def batches(items: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Split items into as many at once as a call takes."""
    batch: dict[str, Any] = {}
    size = 0
    for key, value in items.items():
        grown = len(msgpack.packb([key, value]))
        if batch and (size + grown > BATCH_BYTES or len(batch) == 256):
            yield batch
            batch, size = {}, 0
        batch[key] = value
        size += grown
    if batch:
        yield batch


COMMANDS = (mem,)
