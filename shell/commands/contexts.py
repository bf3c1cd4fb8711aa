"""The command about contexts: list them, also those that sleep, and forget one."""

from __future__ import annotations

from pathlib import Path

import click

from aios.agents import connect
from aios.syscalls.errors import NotFound

from .. import render
from ..output import json_option, show


@click.command()
@click.option(
    "--forget", metavar="OWNER/NAME", help="Drop a context that sleeps, and all that is in it."
)
@json_option
@click.pass_obj
def contexts(home: Path, forget: str | None, as_json: bool) -> None:
    """List contexts, also those that sleep.

    A context with a name sleeps when nobody has it open.

    \b
    Examples:
      aios contexts
      aios contexts --json
      aios contexts --forget /writer/diary
    """
    with connect(home, "aios-contexts") as aios:
        found = aios.contexts()
        if forget is not None:
            owner, _, name = forget.rpartition("/")
            if (owner, name) not in [(each.owner, each.name) for each in found]:
                hint = "`aios contexts` lists them, as OWNER and NAME"
                raise NotFound(f"no context {forget!r}", hint)
            aios.open(name=name, owner=owner).close(forget=True)
            found = aios.contexts()
    show(found, as_json, render.contexts(found))


COMMANDS = [contexts]
