"""An MCP server served: over stdio, or over HTTP to whoever has a token."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import hmac
import os
import secrets
import signal
import socket
import threading
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from aios.syscalls.errors import BadInput

from ..output import say

TOKEN = "AIOS_MCP_TOKEN"
READ_BYTES = 65_536  # of stdin at once
FAREWELL_S = 2  # that answers have when the server is ended


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
            own.sendall(os.read(source, READ_BYTES).removeprefix(codecs.BOM_UTF8))
            while data := os.read(source, READ_BYTES):
                own.sendall(data)
            own.shutdown(socket.SHUT_WR)

    def interrupt(number: int) -> None:
        signals.append(number)
        own.shutdown(socket.SHUT_WR)

    async def serve() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
        low = server._lowlevel_server  # the package's own `run_stdio_async` answers requests alone
        async with stdio_server() as (said, give):
            answered: Any = AnsweredStream(said, give)
            await low.run(answered, give, low.create_initialization_options())

    threading.Thread(target=fill, daemon=True).start()
    try:
        asyncio.run(serve())
    except* BrokenPipeError:  # whoever has asked is gone, and so is all that ran for it
        pass
    if signals:
        raise KeyboardInterrupt


class AnsweredStream:
    """The messages of a client. To a line that is none the error goes back that JSON-RPC has for
    it, as over HTTP."""

    def __init__(self, said: Any, give: Any) -> None:
        self.said, self.give = said, give

    @property
    def last_context(self) -> Any:
        return getattr(self.said, "last_context", None)

    def __aiter__(self) -> AnsweredStream:
        return self

    async def __anext__(self) -> SessionMessage:
        while isinstance(item := await self.said.__anext__(), Exception):
            if error := refused_line(item):
                answer = JSONRPCError(jsonrpc="2.0", id=None, error=error)
                await self.give.send(SessionMessage(answer))
        message: SessionMessage = item
        return message

    async def aclose(self) -> None:
        await self.said.aclose()


def refused_line(error: Exception) -> ErrorData | None:
    """Say what is wrong with a line that is no message; nothing is with one that is empty."""
    found = error.errors(include_url=False) if isinstance(error, ValidationError) else []
    if not found or found[0]["type"] != "json_invalid":
        return ErrorData(code=INVALID_REQUEST, message="this is no message of JSON-RPC")
    if not str(found[0]["input"]).strip():
        return None
    return ErrorData(code=PARSE_ERROR, message="this is not JSON")


def serve_http(server: MCPServer[Any], port: int) -> None:
    """Raises BadInput where the port is taken."""
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

    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise BadInput(f"port {port}: {why}", "give another, or 0 for one that is free") from error
    config = uvicorn.Config(guarded, log_level="error", timeout_graceful_shutdown=FAREWELL_S)
    say(f"url: http://127.0.0.1:{listening.getsockname()[1]}/mcp")
    say(f"header: Authorization: Bearer {token}")
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def right(header: str, token: str) -> bool:
    return hmac.compare_digest(header.encode(), f"Bearer {token}".encode())
