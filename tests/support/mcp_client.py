"""The official client of MCP, spoken to `aios mcp`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from commands import AIOS, environment
from mcp import Client, StdioServerParameters

Body = Callable[[Client], Awaitable[Any]]


def by_stdio(home: Path, body: Body, *options: str, mode: str = "auto") -> Any:
    """Return the result of `body`, called with a client of `aios mcp`."""

    async def use() -> Any:
        args = [*AIOS[1:], "mcp", *options]
        server = StdioServerParameters(command=AIOS[0], args=args, env=environment(home))
        async with asyncio.timeout(60), Client(server, mode=mode) as client:
            return await body(client)

    return asyncio.run(use())


async def value(client: Client, tool: str, **args: Any) -> Any:
    result = await client.call_tool(tool, args)
    assert not result.is_error, result.content
    return result.structured_content


async def refusal(client: Client, tool: str, **args: Any) -> str:
    result = await client.call_tool(tool, args)
    assert result.is_error
    return words(result.content)


def words(blocks: Any) -> str:
    return "".join(block.text for block in blocks)
