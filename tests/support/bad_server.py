"""A connection of MCP to a server that does what servers should not, each time in another way."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
from places import SUPPORT

from aios.agents.mcp.connection import McpConnection, connected
from aios.syscalls.tool import McpServer

BAD = str(SUPPORT / "mcp_servers" / "bad.py")


def bad(*how: str) -> McpServer:
    return McpServer(name="bad", command=sys.executable, args=[BAD, *how])


def quiet(done: float, total: float | None, message: str) -> None:
    pass


def use(server: McpServer, body: Callable[[McpConnection], Awaitable[Any]]) -> Any:
    """Return the result of `body`, called with a connection. No process of the server may be
    left."""

    async def run() -> Any:
        async with asyncio.timeout(60), connected(server) as connection:
            return await body(connection)

    before = psutil.Process().children()  # a system that other tests share
    try:
        return asyncio.run(run())
    finally:
        assert psutil.Process().children() == before


def call(how: str, tool: str = "go", **args: Any) -> Any:
    """Return the result of one call of a server that is bad in this way."""

    async def body(connection: McpConnection) -> Any:
        return await connection.call(f"bad.{tool}", args, quiet)

    return use(bad(how), body)


def specs(how: str) -> dict[str, Any]:
    async def body(connection: McpConnection) -> dict[str, Any]:
        return {spec.name: spec for spec in connection.specs}

    found: dict[str, Any] = use(bad(how), body)
    return found
