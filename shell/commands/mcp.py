"""The command `aios mcp`: AIOS as an MCP server, for programs that use such."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from aios.syscalls.errors import BadInput
from aios.syscalls.proc import SandboxGrants
from aios.syscalls.rules import Manifest

from ..options import READABLE, Whole, confining
from ..output import say


@click.command()
@click.option(
    "--http", "port", type=Whole(0, 65535), metavar="PORT",
    help="Streamable HTTP on 127.0.0.1 instead of stdio; 0: a port that is free.",
)  # fmt: skip
@click.option(
    "--agent", "agents", multiple=True, type=READABLE, metavar="FILE",
    help="A program that may be run, besides those of `aios agents`.",
)  # fmt: skip
@confining
@click.pass_obj
def mcp(
    home: Path, port: int | None, agents: tuple[str, ...], read: tuple[str, ...],
    write: tuple[str, ...], limits: dict[str, Any], manifest: Manifest | None,
) -> None:  # fmt: skip
    """Be an MCP server, for other programs.

    It offers them agents, the model, memory and storage. Over stdio: name `aios mcp` as a server in
    the settings of the program. With --http the address and the token that it takes are printed;
    AIOS_MCP_TOKEN sets the token. --read, --write, --limit and --manifest hold for each agent that
    is run. See docs/mcp.md.

    \b
    Examples:
      aios mcp --read ~/notes
      aios mcp --http 8765 --agent ./my_agent.py --limit tokens=20000
    """
    programs = {Path(path).stem: path for path in agents}
    if len(programs) < len({*agents}):
        raise click.UsageError("two --agent have one name, as their files are named")
    if importlib.util.find_spec("mcp") is None:
        raise BadInput("the package mcp is not installed", "pip install 'aios-system[mcp]'")
    from ..mcp.server import serve_http, serve_stdio  # noqa: PLC0415 (half a second, for this alone)
    from ..mcp.tools import ServedTools  # noqa: PLC0415

    reach = SandboxGrants(read=list(read), write=list(write))
    spawn = msgspec.to_builtins({"reach": reach, "limits": limits or None, "manifest": manifest})
    server = ServedTools(home, programs, spawn).server()
    if port is None:
        if sys.stdin.isatty():
            say(
                "an MCP client starts this, and writes to it: docs/mcp.md; Ctrl-C ends it", err=True
            )
        serve_stdio(server)
    else:
        serve_http(server, port)


COMMANDS = (mcp,)
