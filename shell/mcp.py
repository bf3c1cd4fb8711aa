"""The command `aios mcp`: AIOS as an MCP server, for programs that use such."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.util
import os
import secrets
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from aios.syscalls.errors import BadInput
from aios.syscalls.messages import Reach
from aios.syscalls.rules import Manifest

from .access import manifest
from .processes import READABLE, parse_limits

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

TOKEN = "AIOS_MCP_TOKEN"
PIECE = 65_536  # bytes of stdin that are read at once
FAREWELL = 2  # seconds that answers have when the server is ended


@click.command()
@click.option(
    "--http",
    "port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Streamable HTTP on 127.0.0.1 instead of stdio; 0: a port that is free.",
)
@click.option(
    "--agent",
    "agents",
    multiple=True,
    type=READABLE,
    metavar="FILE",
    help="A program that may be run, besides those of `aios agents`.",
)
@click.option(
    "--read",
    multiple=True,
    type=READABLE,
    metavar="PATH",
    help="A file or folder that the agents may read.",
)
@click.option(
    "--write",
    multiple=True,
    type=READABLE,
    metavar="PATH",
    help="A file or folder that the agents may read and write.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    callback=parse_limits,
    metavar="NAME=NUMBER",
    help="A limit of each agent, as tokens=1000; may be repeated.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    callback=manifest,
    help="TOML: what the agents may do; see docs/access.md.",
)
@click.pass_obj
def mcp(
    home: Path, port: int | None, agents: tuple[str, ...], read: tuple[str, ...],
    write: tuple[str, ...], limits: dict[str, Any], manifest: Manifest | None,
) -> None:  # fmt: skip
    """Offer agents, the model, memory and storage to other programs, as an MCP server.

    Over stdio: name `aios mcp` as a server in the settings of the program. With --http the address
    and the token that it takes are printed; AIOS_MCP_TOKEN sets the token. See docs/mcp.md.

    \b
    Examples:
      aios mcp --read ~/notes
      aios mcp --http 8765 --agent ./my_agent.py --limit tokens=20000
    """
    if importlib.util.find_spec("mcp") is None:
        raise BadInput("the package mcp is not installed", "pip install 'aios[mcp]'")
    from .mcp_tools import Tools  # noqa: PLC0415 (half a second, for this command alone)

    reach = Reach(read=list(read), write=list(write))
    spawn = msgspec.to_builtins({"reach": reach, "limits": limits or None, "manifest": manifest})
    server = Tools(home, {Path(path).stem: path for path in agents}, spawn).server()
    if port is None:
        serve_stdio(server)
    else:
        serve_http(server, port)


def serve_stdio(server: MCPServer[Any]) -> None:
    """Raises KeyboardInterrupt.

    The server reads stdin in a thread that nothing interrupts. So it gets a socket, which another
    thread fills, and which ends as stdin would when the server is to end.
    """
    own, its = socket.socketpair()
    source = os.dup(0)
    os.dup2(its.fileno(), 0)
    its.close()
    signals: list[int] = []

    def fill() -> None:
        with contextlib.suppress(OSError):  # it has ended
            while data := os.read(source, PIECE):
                own.sendall(data)
            own.shutdown(socket.SHUT_WR)

    def interrupt(number: int) -> None:
        signals.append(number)
        own.shutdown(socket.SHUT_WR)

    async def serve() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
        await server.run_stdio_async()

    threading.Thread(target=fill, daemon=True).start()
    asyncio.run(serve())
    if signals:
        raise KeyboardInterrupt


def serve_http(server: MCPServer[Any], port: int) -> None:
    """Raises OSError where the port is taken."""
    import uvicorn  # noqa: PLC0415
    from starlette.datastructures import Headers  # noqa: PLC0415
    from starlette.responses import PlainTextResponse  # noqa: PLC0415

    token = os.environ.get(TOKEN) or secrets.token_urlsafe(32)
    app = server.streamable_http_app()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or right(Headers(scope=scope).get("authorization", ""), token):
            await app(scope, receive, send)
            return
        refusal = PlainTextResponse(
            "this takes the token that `aios mcp` has printed\n", 401,
            {"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
        await refusal(scope, receive, send)

    listening = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(guarded, log_level="error", timeout_graceful_shutdown=FAREWELL)
    click.echo(f"url: http://127.0.0.1:{listening.getsockname()[1]}/mcp")
    click.echo(f"header: Authorization: Bearer {token}")
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def right(header: str, token: str) -> bool:
    return hmac.compare_digest(header.encode(), f"Bearer {token}".encode())


COMMANDS = (mcp,)
