"""One MCP server: connected to, its tools listed and called.

A connection lasts as long as the server's process. Every error of a server names it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

import httpx2
import mcp_types as types
from jsonschema import SchemaError
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from mcp import Client, MCPError
from mcp.client.subscriptions import SubscriptionLost
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS
from msgspec import ValidationError, convert, msgpack, to_builtins
from pydantic import ValidationError as NotMcp
from referencing.exceptions import Unresolvable

from aios.agents.runtime.tool import MAX_DEPTH, check_plain
from aios.syscalls import VERSION
from aios.syscalls.errors import AiosError, ToolArguments, ToolCrashed, ToolFailed
from aios.syscalls.tool import McpServer, Spec

from .messages import MAX_TOOLS, SHOWN_CHARS, mend_result, tool_error, validator_of
from .transport import ANSWER_TIMEOUT_S, say, transport

AFTER_CANCEL_S = 10.0  # to answer in, once it was told to cancel a call
CALL_TIMEOUT_S = 86_400.0  # never reached: the kernel limits a call
MAX_PAGES = 64  # of a list of tools
LIST_INTERVAL_S = 0.5  # between two listings of tools
MAX_TOOLS_BYTES = 1_000_000  # of all of a server; the kernel keeps 1 MiB
TOOLS_LIMIT = f"of a server AIOS has {MAX_TOOLS} tools at most, of {MAX_TOOLS_BYTES} bytes together"
MAX_DESCRIPTION_CHARS = 8192
MAX_REASON_CHARS = 2000  # of an error
MAX_SPEC_BYTES = 48 << 10  # of schemas and description: a call holds 64 KiB
REFUSALS = (MCPError, NotMcp, OSError, RuntimeError)  # of no MCP server, or not for us
CLOSED = ("Connection closed", "SSE stream")  # the package's messages begin so

Progress = Callable[[float, float | None, str], None]


class McpConnection:
    """A connection to a server; `specs` are its tools."""

    def __init__(self, server: McpServer, mode: Literal["auto", "legacy"] = "auto") -> None:
        """Prepare the client. `mode`: ask the server for its versions first, or to initialize."""
        self.server = server
        self.client = Client(
            transport(server, self.over, self._mend), read_timeout_seconds=ANSWER_TIMEOUT_S,
            client_info=types.Implementation(name="aios", version=VERSION),
            message_handler=self.heard, mode=mode,
        )  # fmt: skip
        self.specs: list[Spec] = []
        # Raises ToolCrashed once it is over.
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Tools by the names they have here: their own name, and what it is that they take.
        self._known: dict[str, tuple[str, Validator]] = {}
        self._changed = asyncio.Event()
        self._next_look = 0.0  # by the loop's clock: some say without end that their tools change
        self._running = 0
        self._probe: asyncio.Task[None] | None = None

    async def call(self, tool: str, args: dict[str, Any], on_progress: Progress) -> Any:
        """Call a tool, and return its structured content, a text, or a list of texts, images and so
        on. Cancelling the task cancels the call on the server.

        Raises:
            ToolArguments: they do not fit the tool's schema; nothing was sent.
            ToolFailed: the tool says so, or its answer breaks the protocol.
            ToolCrashed: the server has ended meanwhile.
        """
        if tool not in self._known:
            raise ToolFailed(f"the MCP server {self.server.name} does not offer {tool} any more")
        own, schema = self._known[tool]
        check(tool, schema, args)

        async def told(
            progress: float, total: float | None = None, message: str | None = None
        ) -> None:
            on_progress(progress, total, message or "")

        self._running += 1
        try:
            result = await self._over(self.client.call_tool(own, args, CALL_TIMEOUT_S, told))
        except asyncio.CancelledError:
            self._doubt()
            raise
        except AiosError:
            raise
        except Exception as error:  # the package looks at results by schemas that a server made up
            raise self._failure(error) from error
        finally:
            self._running -= 1
        if result.is_error:
            raise ToolFailed(text_of(result) or f"{tool} failed, and does not say why")
        try:
            value = value_of(result)
            check_plain(value, MAX_DEPTH)
        except ValueError as error:
            raise ToolFailed(f"{tool} returned what cannot be used: {error}") from error
        return value

    async def changed(self) -> None:
        """Wait until the server offers other tools, and update `specs`.

        Raises:
            ToolCrashed: the server has ended, or its list is malformed.
        """
        await self._over(self._changed.wait())
        await self._over(asyncio.sleep(self._next_look - asyncio.get_running_loop().time()))
        self._changed.clear()
        try:
            await self._over(self.list())
        except REFUSALS as error:
            raise self._failure(error, ToolCrashed) from error

    async def list(self) -> None:
        """Update `specs` from the server's list of tools: the first ones, if they are too many."""
        self._next_look = asyncio.get_running_loop().time() + LIST_INTERVAL_S
        found = await self._listed()
        self.specs, self._known = [], {}
        room = MAX_TOOLS_BYTES
        for tool in found:
            try:
                spec = self._spec(tool)
                room -= len(msgpack.encode(spec))
                if len(self.specs) == MAX_TOOLS or room < 0:
                    self._left_out(
                        f"its tools from {tool.name[:SHOWN_CHARS]!r} on are left out: {TOOLS_LIMIT}"
                    )
                    break
                if spec.name not in self._known:
                    self._known[spec.name] = tool.name, validator_of(spec.schema)
                    self.specs.append(spec)
            except (ValidationError, SchemaError, ValueError) as error:
                self._left_out(
                    f"the tool {tool.name[:SHOWN_CHARS]!r} is left out: {tool_error(error)}"
                )

    async def _listed(self) -> Sequence[types.Tool]:
        """Return what the server lists; nothing of one that has resources or prompts alone."""
        found: list[types.Tool] = []
        cursors: list[str | None] = [None]
        while len(cursors) <= MAX_PAGES and len(found) <= MAX_TOOLS:
            try:
                page = await self.client.list_tools(cursor=cursors[-1], cache_mode="refresh")
            except MCPError as error:
                if error.error.code != types.METHOD_NOT_FOUND:
                    raise
                self._left_out("it offers no tools")
                break
            found += page.tools
            if not page.next_cursor:
                break
            if page.next_cursor in cursors:
                self._left_out(
                    f"its list of tools goes in a circle at {page.next_cursor[:SHOWN_CHARS]!r}"
                )
                break
            cursors.append(page.next_cursor)
        if len(cursors) > MAX_PAGES:
            self._left_out(f"what it lists after {MAX_PAGES} pages is left out")
        return found

    def _mend(self, result: dict[str, Any]) -> None:
        is_list = isinstance(result.get("tools"), list)
        modern = is_list and (self.client.session.protocol_version or "") >= "2026"
        mend_result(result, modern, self._left_out)

    def _left_out(self, what: str) -> None:
        say(f"the MCP server {self.server.name}: {what}")

    def _spec(self, tool: types.Tool) -> Spec:
        """Convert a tool to a Spec. Raises ValidationError, ValueError."""
        fields = {
            "name": f"{self.server.name}.{tool.name}",
            "description": (tool.description or tool.title or "")[:MAX_DESCRIPTION_CHARS],
            "schema": tool.input_schema,
            "result": tool.output_schema,
            "effect": not (tool.annotations and tool.annotations.read_only_hint),
            "limit": self.server.limit,
            "timeout": self.server.timeout,
        }
        spec = convert(fields, Spec)
        check_plain([[to_builtins(spec)]], MAX_DEPTH)  # as deep as it is in a call
        if len(msgpack.encode(spec)) > MAX_SPEC_BYTES:
            raise ValidationError(f"its schema has more than {MAX_SPEC_BYTES} bytes")
        return spec

    async def heard(self, message: Any) -> None:
        """Take a notification of the server."""
        if isinstance(message, types.ToolListChangedNotification):
            self._changed.set()

    async def follow(self, listens: asyncio.Event) -> None:
        """Subscribe to changes of the tools, as the protocol of 2026 demands. `listens` is set once
        no later change can be missed, or the server tells of none."""
        tools = self.client.server_capabilities.tools
        try:
            if self.client.protocol_version >= "2026" and tools and tools.list_changed:
                async with self.client.listen(tools_list_changed=True) as events:
                    listens.set()
                    async for _ in events:
                        self._changed.set()
        except (MCPError, SubscriptionLost, TimeoutError) as error:
            name = self.server.name
            say(f"the MCP server {name} does not say when its tools change: {in_one_line(error)}")
        finally:
            listens.set()

    def over(self, why: str) -> None:
        """Mark the connection as ended."""
        if not self.end.done():
            self.end.set_exception(ToolCrashed(f"the MCP server {self.server.name} {why}"))
            self.end.exception()  # it may be that nobody asks

    def why(self) -> ToolCrashed:
        """Return the error that ended the connection."""
        error = self.end.exception()
        assert isinstance(error, ToolCrashed)
        return error

    async def _over(self, doing: Any) -> Any:
        """Await `doing`. Raises ToolCrashed if the connection ends before it."""
        task = asyncio.ensure_future(doing)
        try:
            await asyncio.wait([task, self.end], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.end.result()
            return task.result()
        finally:
            task.cancel()

    def _doubt(self) -> None:
        """Check, after a call was cancelled, that the server still answers: one that goes on with
        the call, and ignores all else, would block later ones. Other calls may take their time."""
        patience = (
            AFTER_CANCEL_S if self._running == 1 else max(AFTER_CANCEL_S, self.server.timeout)
        )
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._still_there(patience))

    async def _still_there(self, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                await self.client.list_tools(cache_mode="bypass")
        except (TimeoutError, MCPError):
            self.over(f"does not answer any more, {patience:g} s after a call was cancelled")

    def _failure(self, error: Exception, kind: type[AiosError] = ToolFailed) -> AiosError:
        if isinstance(error, MCPError) and is_closed(error):
            self.over("has ended")
            return self.why()
        if isinstance(error, NotMcp):
            return kind(f"the MCP server {self.server.name} {why_not(self.server, error)}")
        return kind(f"{self.server.name}: {in_one_line(error)}")


@asynccontextmanager
async def connected(server: McpServer) -> AsyncIterator[McpConnection]:
    """Start the server, or reach it, agree on a version of the protocol, and list its tools.

    Raises:
        ToolCrashed: it cannot be started or reached, does not speak the protocol, or ended.
    """
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # it is told here, in a line
    connection, listens, ready = McpConnection(server), asyncio.Event(), False
    try:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(connection.client)
            except Exception:
                if not (server.command and connection.end.done()):
                    raise
                # Some exit where what they hear first is not `initialize`.
                connection = McpConnection(server, "legacy")
                await stack.enter_async_context(connection.client)
            following = asyncio.create_task(connection.follow(listens))
            try:
                await listens.wait()
                await connection.list()
                ready = True
                yield connection
            finally:
                following.cancel()
    except Exception as error:
        cause = leaf(error)
        if not ready and connection.end.done():
            raise connection.why() from error
        if isinstance(cause, httpx2.HTTPError) or (not ready and isinstance(cause, REFUSALS)):
            raise ToolCrashed(f"the MCP server {server.name} {why_not(server, cause)}") from error
        raise cause from None


def check(tool: str, schema: Validator, args: dict[str, Any]) -> None:
    """Check arguments by a tool's schema.

    Raises:
        ToolArguments: they do not fit.
        ToolFailed: the schema cannot be used.
    """
    try:
        error = best_match(schema.iter_errors(args))
    except Unresolvable as reason:
        raise ToolFailed(f"the tool's schema refers to what is not in it: {reason}") from reason
    except Exception as reason:  # of a schema without end, for instance
        raise ToolFailed(f"the tool's schema cannot be used: {in_one_line(reason)}") from reason
    if error is not None:
        raise ToolArguments(f"{tool}: {error.json_path}: {error.message}"[:MAX_REASON_CHARS])


def value_of(result: types.CallToolResult) -> Any:
    """Return the value of a call's result. Raises ValueError."""
    if result.structured_content is not None:
        return result.structured_content
    items = [item_of(block) for block in result.content]
    return "\n".join(items) if all(isinstance(item, str) for item in items) else items


def item_of(block: types.ContentBlock) -> Any:
    """Convert a block to a text, or a map: "type", then "mime" and "data" or its other fields."""
    match block:
        case types.TextContent():
            return block.text
        case types.ImageContent() | types.AudioContent():
            return {"type": block.type, "mime": block.mime_type, "data": data_of(block.data)}
        case types.EmbeddedResource():
            return resource_of(block.resource)
        case types.ResourceLink():
            return {"type": "link", "uri": str(block.uri), "name": block.name}


def resource_of(resource: types.TextResourceContents | types.BlobResourceContents) -> Any:
    if isinstance(resource, types.TextResourceContents):
        return resource.text
    return {"type": "blob", "mime": resource.mime_type, "data": data_of(resource.blob)}


def data_of(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"data that is not base64: {error}") from error


def text_of(result: types.CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, types.TextContent))


def is_closed(error: MCPError) -> bool:
    """Return true if the server has gone. Servers use the same code for all that goes wrong."""
    code, message = error.error.code, error.error.message
    return code == types.CONNECTION_CLOSED and message.startswith(CLOSED)


def leaf(error: BaseException) -> BaseException:
    """Return the first exception within groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def why_not(server: McpServer, error: BaseException) -> str:
    """Say why there is no connection, or none any more."""
    if isinstance(error, MCPError) and error.error.code == types.REQUEST_TIMEOUT:
        return f"does not answer within {ANSWER_TIMEOUT_S:g} s"
    if isinstance(error, OSError) and not server.url:
        return f"cannot be started: {error.strerror}: {error.filename or server.command}"
    if isinstance(error, httpx2.HTTPError | OSError):
        place = httpx2.URL(server.url).copy_with(userinfo=b"", query=None)  # where keys may be
        return f"cannot be reached at {place}: {in_one_line(error)}"
    if "protocol version" in str(error):
        known = ", ".join(KNOWN_PROTOCOL_VERSIONS)
        return f"speaks another version of the protocol: {in_one_line(error)} (known: {known})"
    return f"does not speak the protocol: {in_one_line(error)}"


def in_one_line(error: BaseException) -> str:
    if isinstance(error, NotMcp):
        what = error.errors()[0]
        return f"{'.'.join(map(str, what['loc']))}: {what['msg']}"
    if isinstance(error, MCPError):  # what a server says of its reason may be in any of its lines
        words = " ".join(error.error.message.split())
        return words[:MAX_REASON_CHARS] or f"error {error.error.code}"
    if isinstance(error, httpx2.HTTPStatusError):  # its own text has the address
        return f"{error.response.status_code} {error.response.reason_phrase}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
