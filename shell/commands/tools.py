"""The commands about tools: which there are, what they take, and a call from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.progress import BarColumn, Progress

from aios.agents import Aios, connect
from aios.agents.sdk.tools import absent
from aios.syscalls.errors import BadInput
from aios.syscalls.tool import CallTool, Spec, ToolProgress, Tools

from .. import render
from ..completion import tool_names
from ..escape import as_json_text, brief
from ..options import field
from ..output import bars, json_option, progress, say, show

MAX_ABOUT_CHARS = 320  # of a description in a list


def about(spec: Spec) -> str:
    """Return the first paragraph of a tool's description, or how it begins."""
    return brief(spec.description.strip().partition("\n\n")[0], MAX_ABOUT_CHARS)


@click.group()
def tool() -> None:
    """Tools that agents call.

    They are those that ship, your own, and those of MCP servers.

    \b
    Examples:
      aios tool list
      aios tool show sql.query
      aios tool call calculate expression='2**64'
    """


@tool.command("list")
@json_option
@click.pass_obj
def list_(home: Path, as_json: bool) -> None:
    """List all tools, and the toolboxes that did not start.

    \b
    Examples:
      aios tool list
      aios tool list --json
    """
    with connect(home, "aios-tool") as aios:
        found = toolboxes(aios)
    rows = [[each.name, "yes" if each.effect else "", about(each)] for each in found.tools]
    rows += [[f"{box.name} (not there)", "", box.error] for box in found.boxes if box.error]
    show(found, as_json, render.columns(["tool", "changes", "what it does"], rows))


@tool.command("show")
@click.argument("name", shell_complete=tool_names)
@json_option
@click.pass_obj
def show_(home: Path, name: str, as_json: bool) -> None:
    """Show a tool: its description, arguments and result.

    \b
    Examples:
      aios tool show sql.query
      aios tool show calculate --json
    """
    with connect(home, "aios-tool") as aios:
        spec = find(aios, name)
    show(spec, as_json, render.pairs([
        ("name", spec.name), ("does", spec.description),
        ("takes", as_json_text(spec.schema)),
        ("returns", "anything" if spec.result is None else as_json_text(spec.result)),
        ("changes something", "yes" if spec.effect else "no"),
        ("at once", f"{spec.limit}" + (f", alone among {spec.exclusive!r}" * bool(spec.exclusive))),
        ("time limit", f"{spec.timeout:g} s"),
    ]))  # fmt: skip


@tool.command("call")
@click.argument("name", shell_complete=tool_names)
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--args", "given", metavar="JSON", help="All of them as one JSON object; - is stdin.")
@click.option(
    "--timeout", type=field(CallTool, "timeout"), metavar="SECONDS", help="How long, at most."
)
@json_option
@click.pass_obj
def call_(
    home: Path, name: str, arguments: tuple[str, ...], given: str | None, timeout: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Call a tool, and print what it returns. Ctrl-C cancels the call.

    A value is text where the tool's schema says so, else JSON.

    \b
    Examples:
      aios tool call calculate expression='2**64'
      aios tool call time.add --args '{"start": "2026-01-31", "days": 30}'
    """
    with connect(home, "aios-tool") as aios:
        args = arguments_of(find(aios, name), arguments, given)
        running = aios.call_tool(name, args, timeout=timeout)
        with bars("{task.description}", BarColumn(), transient=True) as bar:
            follow(running, bar)
        result = running.result()
    if as_json:
        say(as_json_text(result))
        return
    say(render.value(result.value))
    if result.stored:
        say(f"{result.size} bytes in all: aios sto get {result.stored}", err=True)


def follow(running: Iterable[ToolProgress], bar: Progress) -> None:
    task = bar.add_task("", total=None, visible=False)
    for step in running:
        said = brief(step.message)
        bar.update(task, completed=step.done, total=step.total, description=said, visible=True)


def toolboxes(aios: Aios) -> Tools:
    """List the tools. Toolboxes that nobody has called yet start first, which can take a minute."""
    with progress() as tell:
        tell("asking the toolboxes what they offer")
        return aios.toolboxes()


def find(aios: Aios, name: str) -> Spec:
    """Find a tool by name. Raises NotFound, or ToolFailed if its toolbox did not start."""
    found = toolboxes(aios)
    for spec in found.tools:
        if spec.name == name:
            return spec
    raise absent(name, found, "`aios tool list` lists them")


def arguments_of(spec: Spec, pairs: tuple[str, ...], given: str | None) -> dict[str, Any]:
    """Parse the arguments of a tool. Raises BadInput."""
    text = sys.stdin.read() if given == "-" else given
    try:
        args = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--args is not JSON: {error}") from error
    if not isinstance(args, dict):
        raise BadInput("--args is not an object", "--args '{\"NAME\": VALUE}'")
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(f"{pair!r} is not NAME=VALUE", f"see `aios tool show {spec.name}`")
        args[name] = value_of(spec.schema.get("properties", {}).get(name, {}), value)
    return args


def value_of(schema: Any, text: str) -> Any:
    if takes_text(schema, text):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text  # the tool says whether that is of use


def takes_text(schema: Any, text: str) -> bool:
    """Return whether a schema takes `text` as it is, rather than as JSON."""
    if not isinstance(schema, dict):  # true: it takes anything
        return False
    if "anyOf" in schema:
        return all(takes_text(part, text) for part in schema["anyOf"])
    kinds = schema.get("type", "any")
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    return kinds <= {"string", "null"} or text in schema.get("enum", ())


COMMANDS = (tool,)
