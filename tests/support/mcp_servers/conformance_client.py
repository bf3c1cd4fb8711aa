"""The client of MCP servers, as the conformance suite starts it: it calls each tool of the server
at the address in its last argument."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aios.agents.mcp.connection import connected
from aios.syscalls.tool import McpServer

VALUES = {"number": 2, "integer": 2, "string": "a", "boolean": True}


def quiet(*_: Any) -> None:
    pass


async def call_all(url: str) -> None:
    async with connected(McpServer(name="suite", url=url)) as server:
        for spec in server.specs:
            kinds = spec.schema.get("properties", {})
            args = {name: VALUES[kind["type"]] for name, kind in kinds.items()}
            print(spec.name, await server.call(spec.name, args, quiet))


asyncio.run(call_all(sys.argv[-1]))
