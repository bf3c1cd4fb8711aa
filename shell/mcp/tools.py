"""The tools of AIOS as an MCP server: agents, the model, memory, storage.

Each tool is a few system calls on one connection. The person who starts the server decides which
programs its agents may be, and what they may read and write; the model that calls it does not.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp_types import ToolAnnotations

from aios.agents import connect
from aios.agents.runtime.runner import registered
from aios.agents.sdk.async_calls import AsyncCalls
from aios.agents.sdk.declared import declared_name
from aios.syscalls import VERSION
from aios.syscalls import mem as m
from aios.syscalls import sto as s
from aios.syscalls.base import Done
from aios.syscalls.errors import AiosError, NotFound, ProcessGone, TimedOut
from aios.syscalls.llm import Piece, Result
from aios.syscalls.proc import Exited, LogPart, ProcessInfo, Spawned
from aios.syscalls.sto import Hits

from .. import render
from ..who import GRACE_S

LOG_WAIT_S = 5.0  # that one call waits for more of a log, and so between reports of progress
LOG_TAIL_BYTES = 4096  # of an agent's log, with its result
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)


class Kernel:
    """The connection to it: made when it is needed, and anew after the system was started anew."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._calls: AsyncCalls | None = None

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[AsyncCalls]:
        """Yield the connection, made anew if the last one is lost. Raises ToolError, for the model
        to read."""
        try:
            if self._calls is None or self._calls.lost:
                self._calls = AsyncCalls(connect(self.home, "aios-mcp"))
            yield self._calls
        except AiosError as error:
            raise ToolError(str(error)) from error


class ServedTools:
    """`agents` are programs of the user's by name; `spawn` is what each agent is started with."""

    def __init__(self, home: Path, agents: dict[str, str], spawn: dict[str, Any]) -> None:
        self.kernel = Kernel(home)
        self.programs = registered() | agents
        self.paths = agents
        self.spawn = spawn

    def server(self) -> MCPServer[Any]:
        server: MCPServer[Any] = MCPServer("aios", version=VERSION, log_level="ERROR")
        for read in (self.list_agents, self.memory_get, self.memory_scan, self.storage_get,
                     self.storage_list, self.storage_search):  # fmt: skip
            server.add_tool(read, annotations=READS)
        for write in (self.run_agent, self.generate, self.memory_put, self.storage_put):
            server.add_tool(write, annotations=WRITES)
        server.resource("aios://storage/{+path}", name="storage")(self.stored)
        return server

    # --- agents -----------------------------------------------------------------------------------

    async def run_agent(
        self, ctx: Context[Any], program: str, task: Any = None, name: str | None = None
    ) -> dict[str, Any]:
        """Run an agent of AIOS to its end: its result, and the end of what it printed. The programs
        are those of list_agents. Cancelling the call ends the agent."""
        if program not in self.programs:
            raise ToolError(f"no agent {program!r}; known: {', '.join(self.programs)}")
        path = self.paths.get(program, program)
        async with self.kernel() as aios:
            with anyio.CancelScope(shield=True):  # whoever is started is also ended
                spawned = await aios.call(
                    Spawned, "proc.spawn", program=path, task=task,
                    name=name or declared_name(path), **self.spawn,
                )  # fmt: skip
            try:
                log = await self._follow(aios, ctx, spawned.pid)
                end = await aios.call(Exited, "proc.wait", pid=spawned.pid)
            except asyncio.CancelledError:
                with anyio.CancelScope(shield=True):
                    await self._finish_off(aios, spawned.pid)
                raise
        if end.code:
            raise ToolError(f"{render.ending(end)}; it printed: {log}")
        answer = {"result": msgspec.to_builtins(end.result), "printed": log}
        return answer | ({"output_lost": end.output_lost} if end.output_lost else {})

    async def _follow(self, aios: AsyncCalls, ctx: Context[Any], pid: int) -> str:
        """Report an agent's lines as they come. Return the end of its log, once it has ended."""
        log, offset, ended = b"", 0, False
        while not ended:
            part = await aios.call(LogPart, "proc.log", pid=pid, offset=offset, wait=LOG_WAIT_S)
            log, offset, ended = (log + part.data)[-LOG_TAIL_BYTES:], part.offset, part.ended
            lines = part.data.decode(errors="replace").strip().splitlines()
            await ctx.report_progress(offset, message=lines[-1] if lines else "it runs")
        return log.decode(errors="replace")

    async def _finish_off(self, aios: AsyncCalls, pid: int) -> None:
        with contextlib.suppress(ProcessGone):
            await aios.call(Done, "proc.kill", pid=pid, signal="TERM")
            try:
                await aios.call(Exited, "proc.wait", pid=pid, timeout=GRACE_S)
            except TimedOut:
                await aios.call(Done, "proc.kill", pid=pid, signal="KILL")

    async def list_agents(self) -> dict[str, Any]:
        """List the agents that run_agent can run, with a line about each, and those that run
        now."""
        async with self.kernel() as aios:
            rows = await aios.call(list[ProcessInfo], "proc.ps")
        running = [
            {"pid": row.pid, "name": row.name, "state": row.state, "tokens": row.tokens}
            for row in rows
            if row.kind == "agent"
        ]
        return {"programs": self.programs, "running": running}

    # --- the model --------------------------------------------------------------------------------

    async def generate(
        self, ctx: Context[Any], prompt: str, system: str | None = None, max_tokens: int = 256,
        temperature: float = 0.0, seed: int = 0, schema: dict[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Answer a prompt by the local model. With a JSON schema the answer fits it."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        async with self.kernel() as aios:
            call = aios.start(
                "llm.generate", messages=messages, max_tokens=max_tokens, schema=schema,
                temperature=temperature, seed=seed,
            )  # fmt: skip
            text, tokens = "", 0
            with aios.cancelling(call):
                async for body in aios.pieces(call):
                    piece = msgspec.convert(body, Piece)
                    text, tokens = text + piece.text, tokens + len(piece.tokens)
                    await ctx.report_progress(tokens, max_tokens, text[-200:])
            result = msgspec.convert(call.body, Result)
        return {"text": result.text, "finish": result.finish, "tokens": len(result.tokens)}

    # --- memory -----------------------------------------------------------------------------------

    async def memory_put(self, agent: str, items: dict[str, Any], space: str = "main") -> str:
        """Set items of an agent's memory, all or none. `agent` is a name as "/writer"."""
        async with self.kernel() as aios:
            await aios.call(Done, "mem.put", items=items, space=space, principal=agent)
        return f"{len(items)} stored"

    async def memory_get(self, agent: str, keys: list[str], space: str = "main") -> dict[str, Any]:
        """Read values of an agent's memory, of those keys that are there."""
        found: dict[str, Any] = {}
        async with self.kernel() as aios:
            while keys:
                part = await aios.call(m.Items, "mem.get", keys=keys, space=space, principal=agent)
                found, keys = found | part.items, part.rest
        return {"items": msgspec.to_builtins(found)}

    async def memory_scan(
        self, agent: str, prefix: str = "", space: str = "main", after: str | None = None
    ) -> dict[str, Any]:
        """Read items of an agent's memory in the order of their keys; `after` of the answer, if
        any, is what to ask the next page with."""
        async with self.kernel() as aios:
            page = await aios.call(
                m.Scanned, "mem.scan", prefix=prefix, space=space, after=after, principal=agent
            )
        return {"items": msgspec.to_builtins(dict(page.items)), "after": page.after}

    # --- storage ----------------------------------------------------------------------------------

    async def storage_put(
        self, path: str, text: str, owner: str = "", tags: list[str] | None = None,
        if_version: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Write a new version of an object; earlier ones stay. `if_version`: only if that is the
        newest (0: only if there is none)."""
        async with self.kernel() as calls:
            aios = calls.aios
            stored = calls.blocking(
                lambda: aios.sto_put(
                    path, text, owner=owner, tags=tags or [], if_version=if_version
                )
            )
        return {"path": stored.path, "version": stored.version, "size": stored.size}

    async def storage_get(
        self, path: str, owner: str = "", version: int | None = None, offset: int = 0,
        count: int = 65_536,
    ) -> dict[str, Any]:  # fmt: skip
        """Read an object, or `count` bytes of it from `offset` on: as text, or as base64 where it
        is none. `next` of the answer is where the rest begins, if there is one."""
        async with self.kernel() as aios:
            part = await aios.call(
                s.Content, "sto.get", path=path, owner=owner, version=version, offset=offset,
                count=count,
            )  # fmt: skip
        text, used = decoded(part.data)
        end = offset + used
        more = {"next": end} if end < part.info.size else {}
        return {**text, "version": part.info.version, "size": part.info.size, **more}

    async def storage_list(
        self, prefix: str = "", owner: str = "", after: str = ""
    ) -> dict[str, Any]:
        """List the objects below a prefix; `after` of the answer, if any, is what to ask the next
        page with."""
        async with self.kernel() as aios:
            page = await aios.call(s.Listed, "sto.list", prefix=prefix, owner=owner, after=after)
        rows = [
            {"path": o.path, "version": o.version, "size": o.size, "tags": o.tags}
            for o in page.objects
        ]
        return {"objects": rows, "after": page.after}

    async def storage_search(
        self, query: str, count: int = 5, owner: str | None = None, path: str = "",
        mode: Literal["words", "meaning", "fused"] = "fused",
    ) -> dict[str, Any]:  # fmt: skip
        """Find the passages of stored texts that fit a query best, by words and by meaning."""
        async with self.kernel() as aios:
            found = await aios.call(
                Hits, "sto.search", query=query, count=count, mode=mode, owner=owner, path=path
            )
        rows = [
            {"owner": hit.owner, "path": hit.path, "version": hit.version, "text": hit.text}
            for hit in found.hits
        ]
        return {"passages": rows, "not_indexed_yet": found.behind}

    async def stored(self, path: str) -> str | bytes:
        """Read an object of the person's own."""
        try:
            async with self.kernel() as calls:
                aios = calls.aios
                data: bytes = calls.blocking(lambda: aios.sto_get(path, owner=""))
        except ToolError as error:
            absent = isinstance(error.__cause__, NotFound)
            kind = ResourceNotFoundError if absent else ResourceError
            raise kind(str(error)) from error
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data


def decoded(data: bytes) -> tuple[dict[str, str], int]:
    """Decode a part of a content as text, without a character that is cut, or else as base64.
    Return also how many bytes that is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}, len(data)
    return {"text": text}, len(data) - len(decoder.getstate()[0])
