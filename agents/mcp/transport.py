"""The transport of messages from and to an MCP server: by its stdin and stdout, or by HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpx2
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from aios.syscalls.home import CERTIFICATE_VARIABLES
from aios.syscalls.tool import McpServer

from .messages import (
    SHOWN_CHARS,
    BadMessage,
    answers,
    mend_progress,
    mended_body,
    mended_event,
    messages_of,
)

ANSWER_TIMEOUT_S = 30.0  # for all but a call
MAX_MESSAGE_BYTES = 16 << 20
GRACE_S = 2.0  # to end in, after each of: stdin closed, TERM, KILL
READ_BYTES = 65_536  # of stderr at once
MAX_UNREAD_REQUESTS = 64  # of a server that does not read the answers
DNS_OVER_TCP = {"RES_OPTIONS": "use-vc"}  # the sandbox has no UDP
# Variables that a server inherits besides those that the package passes on.
INHERITED = ("TMPDIR", "GIT_CONFIG_NOSYSTEM", *CERTIFICATE_VARIABLES)
HTTP_TIMEOUT = httpx2.Timeout(ANSWER_TIMEOUT_S, read=None)  # a call may take long

Over = Callable[[str], None]  # called with the reason why the connection has ended
Mend = Callable[[dict[str, Any]], None]  # changes a result in its place
Sent = MemoryObjectSendStream[SessionMessage | Exception]
Given = MemoryObjectReceiveStream[SessionMessage]


@asynccontextmanager
async def transport(server: McpServer, over: Over, mend: Mend) -> AsyncIterator[Any]:
    """Open two streams, as the package mcp takes them: from the server, with results changed by
    `mend`, and to it.

    Raises:
        OSError: the program cannot be started.
        httpx2.HTTPError: the address cannot be reached, or does not take the key.
    """
    async with program(server, over) if server.command else address(server) as (said, give):
        yield MendedStream(said, mend), give


class MendedStream:
    """The stream from a server, with results changed by `mend`."""

    def __init__(self, stream: Any, mend: Mend) -> None:
        self.stream, self.mend = stream, mend

    @property
    def last_context(self) -> Any:
        return getattr(self.stream, "last_context", None)

    def __aiter__(self) -> MendedStream:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        item: SessionMessage | Exception = await self.stream.__anext__()
        message = item.message if isinstance(item, SessionMessage) else None
        if isinstance(message, JSONRPCResponse):
            self.mend(message.result)
        elif isinstance(message, JSONRPCNotification) and message.params:
            mend_progress(message.params)
        return item

    async def __aenter__(self) -> MendedStream:
        await self.stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.stream.__aexit__(*error)


@asynccontextmanager
async def address(server: McpServer) -> AsyncIterator[Any]:
    headers = {**server.headers, "Accept-Encoding": "identity"}
    async with (
        httpx2.AsyncClient(
            headers=headers, timeout=HTTP_TIMEOUT, event_hooks={"response": [check_response]}
        ) as http,
        streamable_http_client(
            server.url, http_client=http, max_sse_event_size=MAX_MESSAGE_BYTES
        ) as streams,
    ):
        yield streams


async def check_response(response: httpx2.Response) -> None:
    """Check a response, and bound its messages as those of a program are. Raises HTTPError if the
    key does not fit, only a proxy answers, or the session has ended: the package would go on. An
    error that answers the request is passed on, whatever the status."""
    in_session = "mcp-session-id" in response.request.headers
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise httpx2.DecodingError("it compresses what it says, unasked")
    if response.headers.get("Content-Type", "").lower().startswith("application/json"):
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = JsonBody(response.stream)
        if response.status_code >= 400:
            is_answer, why = answers(response.request.content, await response.aread())
            if is_answer or (why and response.status_code == 400 and "session" not in why.lower()):
                return
    elif response.status_code >= 500:
        response.raise_for_status()
    elif response.headers.get("Content-Type", "").lower().startswith("text/event-stream"):
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = EventStreamBody(response.stream)
    if response.status_code in ((400, 401, 403, 404) if in_session else (401, 403)):
        response.raise_for_status()


class JsonBody(httpx2.AsyncByteStream):
    """The body of one message. Raises ReadError if it is too long."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = bytearray()
        async for part in self.stream:
            body += part
            if len(body) > MAX_MESSAGE_BYTES:
                raise httpx2.ReadError(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
        yield mended_body(bytes(body))

    async def aclose(self) -> None:
        await self.stream.aclose()


class EventStreamBody(JsonBody):
    """A body of messages as events, each in a line."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        async for part in self.stream:
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > MAX_MESSAGE_BYTES:
                raise httpx2.ReadError(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
            yield b"".join(mended_event(line) + b"\n" for line in lines)
        yield rest


@asynccontextmanager
async def program(server: McpServer, over: Over) -> AsyncIterator[Any]:
    """Run a server as a program. The package's own does not bound messages, or report an end."""
    within_walls = {name: os.environ[name] for name in INHERITED if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        server.command, *server.args, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=server.cwd,
        limit=MAX_MESSAGE_BYTES, start_new_session=True,
        env=get_default_environment() | within_walls | DNS_OVER_TCP | server.env,
    )  # fmt: skip
    complaints = asyncio.create_task(pass_on(process))
    sent, receive = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    give, given = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(read, server, process, sent, over)
            group.start_soon(write, process, given)
            group.start_soon(watch, process, over)
            yield receive, give
            group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await end(process)
            await asyncio.wait([complaints], timeout=GRACE_S)
            complaints.cancel()


async def read(server: McpServer, process: Process, sent: Sent, over: Over) -> None:
    """Read messages until the server ends, or breaks the protocol."""
    assert process.stdin is not None and process.stdout is not None
    asks = 0
    async with sent:
        with suppress(anyio.BrokenResourceError):  # nobody listens any more
            try:
                async for line in process.stdout:
                    found = messages_of(line)
                    for message in found:
                        await sent.send(SessionMessage(message))
                        asks += isinstance(message, JSONRPCRequest)
                        if asks > MAX_UNREAD_REQUESTS:
                            asks = 0
                            with suppress(ConnectionError):  # it has ended
                                await process.stdin.drain()
                    if not found and (shown := line[:SHOWN_CHARS].decode(errors="replace").strip()):
                        what = "writes to stdout, which is for its messages"
                        say(f"the MCP server {server.name} {what}: {shown}")
                over("has ended")
            except BadMessage as error:
                over(f"wrote a message that is not JSON-RPC: {error}")
            except ValueError:  # of asyncio
                over(f"wrote a message of more than {MAX_MESSAGE_BYTES} bytes")


async def write(process: Process, given: Given) -> None:
    assert process.stdin is not None
    with suppress(ConnectionError):  # it has ended; that is heard where it is read from
        async with given:
            async for item in given:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(text.encode() + b"\n")
                await process.stdin.drain()


async def watch(process: Process, over: Over) -> None:
    """Notice the end of a server whose child holds its stdout: `wait` would wait for that, too."""
    while process.returncode is None:
        await asyncio.sleep(GRACE_S)
    await asyncio.sleep(GRACE_S)  # its last words are read before that
    over("has ended")


async def end(process: Process) -> None:
    """End a server with its children as the protocol says; it may have to write before it ends."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    steps: tuple[int | None, ...] = (signal.SIGTERM, signal.SIGKILL, None)
    if process.returncode is not None:  # only what it has started may be there
        signal_group(process, signal.SIGKILL)
        steps = (None,)
    for number in steps:
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                while await process.stdout.read(MAX_MESSAGE_BYTES):
                    pass
                await process.wait()
                return
        if number is not None:
            signal_group(process, number)


def signal_group(process: Process, number: int) -> None:
    """Signal a process group. The sandbox may call one that is gone another's."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def pass_on(process: Process) -> None:
    """Copy a server's stderr to the worker's log."""
    assert process.stderr is not None
    while data := await process.stderr.read(READ_BYTES):
        log(data)


def say(line: str) -> None:
    log(line.encode(errors="backslashreplace") + b"\n")


def log(data: bytes) -> None:
    """Write to the worker's log, which keeps its latest output."""
    with suppress(OSError):
        os.write(2, data)
