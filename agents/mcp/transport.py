"""How messages come from and go to an MCP server: by its stdin and stdout, or by HTTP."""

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
    SHOWN,
    BadMessage,
    answers,
    mend_progress,
    mended_body,
    mended_event,
    messages_of,
)

ANSWER_TIMEOUT_S = 30.0  # that a server has to answer anything but a call
LONGEST = 16 << 20  # bytes of a message
GRACE_S = 2.0  # to end in, after each of: no more stdin, TERM, KILL
PIECE = 65_536  # bytes that are read of stderr at once
ASKS = 64  # that a server may make while it does not read the answers
NAMES_BY_TCP = {"RES_OPTIONS": "use-vc"}  # UDP is behind the walls
# Variables that a server inherits besides those that the package passes on.
INHERITED = ("TMPDIR", "GIT_CONFIG_NOSYSTEM", *CERTIFICATE_VARIABLES)
SILENCE = httpx2.Timeout(ANSWER_TIMEOUT_S, read=None)  # of HTTP; a call may take long

Over = Callable[[str], None]  # told why a server is of no more use
Mend = Callable[[dict[str, Any]], None]  # changes a result in its place
Sent = MemoryObjectSendStream[SessionMessage | Exception]
Given = MemoryObjectReceiveStream[SessionMessage]


@asynccontextmanager
async def transport(server: McpServer, over: Over, mend: Mend) -> AsyncIterator[Any]:
    """Two streams, as the package mcp has them: from the server, its results changed by `mend`, and
    to it.

    Raises:
        OSError: the program cannot be started.
        httpx2.HTTPError: the address cannot be reached, or does not take the key.
    """
    async with program(server, over) if server.command else address(server) as (said, give):
        yield Mended(said, mend), give


class Mended:
    """The stream of what a server says, with its results changed by `mend`."""

    def __init__(self, stream: Any, mend: Mend) -> None:
        self.stream, self.mend = stream, mend

    @property
    def last_context(self) -> Any:
        return getattr(self.stream, "last_context", None)

    def __aiter__(self) -> Mended:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        item: SessionMessage | Exception = await self.stream.__anext__()
        message = item.message if isinstance(item, SessionMessage) else None
        if isinstance(message, JSONRPCResponse):
            self.mend(message.result)
        elif isinstance(message, JSONRPCNotification) and message.params:
            mend_progress(message.params)
        return item

    async def __aenter__(self) -> Mended:
        await self.stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.stream.__aexit__(*error)


@asynccontextmanager
async def address(server: McpServer) -> AsyncIterator[Any]:
    headers = {**server.headers, "Accept-Encoding": "identity"}
    async with (
        httpx2.AsyncClient(
            headers=headers, timeout=SILENCE, event_hooks={"response": [let_in]}
        ) as http,
        streamable_http_client(server.url, http_client=http, max_sse_event_size=LONGEST) as streams,
    ):
        yield streams


async def let_in(response: httpx2.Response) -> None:
    """Raises HTTPError where the key does not fit, only a proxy answers, or the session is no more:
    the package would go on. A message has the bound that a program's has. An error that is the
    answer to what was asked is one, whatever the status says."""
    in_session = "mcp-session-id" in response.request.headers
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise httpx2.DecodingError("it compresses what it says, unasked")
    if response.headers.get("Content-Type", "").lower().startswith("application/json"):
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = Whole(response.stream)
        if response.status_code >= 400:
            is_answer, why = answers(response.request.content, await response.aread())
            if is_answer or (why and response.status_code == 400 and "session" not in why.lower()):
                return
    elif response.status_code >= 500:
        response.raise_for_status()
    elif response.headers.get("Content-Type", "").lower().startswith("text/event-stream"):
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = Events(response.stream)
    if response.status_code in ((400, 401, 403, 404) if in_session else (401, 403)):
        response.raise_for_status()


class Whole(httpx2.AsyncByteStream):
    """A message as a whole. Raises ReadError where it is too long."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = bytearray()
        async for part in self.stream:
            body += part
            if len(body) > LONGEST:
                raise httpx2.ReadError(f"a message of more than {LONGEST} bytes")
        yield mended_body(bytes(body))

    async def aclose(self) -> None:
        await self.stream.aclose()


class Events(Whole):
    """Messages as events, each in a line."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        async for part in self.stream:
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > LONGEST:
                raise httpx2.ReadError(f"a message of more than {LONGEST} bytes")
            yield b"".join(mended_event(line) + b"\n" for line in lines)
        yield rest


@asynccontextmanager
async def program(server: McpServer, over: Over) -> AsyncIterator[Any]:
    """The package has this as well, with no bound on a message, and says nothing of an end."""
    within_walls = {name: os.environ[name] for name in INHERITED if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        server.command, *server.args, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=server.cwd,
        limit=LONGEST, start_new_session=True,
        env=get_default_environment() | within_walls | NAMES_BY_TCP | server.env,
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
    """Ends with the server, or with what makes it of no more use."""
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
                        if asks > ASKS:
                            asks = 0
                            with suppress(ConnectionError):  # it has ended
                                await process.stdin.drain()
                    if not found and (shown := line[:SHOWN].decode(errors="replace").strip()):
                        what = "writes to stdout, which is for its messages"
                        say(f"the MCP server {server.name} {what}: {shown}")
                over("has ended")
            except BadMessage as error:
                over(f"wrote a message that is not JSON-RPC: {error}")
            except ValueError:  # of asyncio
                over(f"wrote a message of more than {LONGEST} bytes")


async def write(process: Process, given: Given) -> None:
    assert process.stdin is not None
    with suppress(ConnectionError):  # it has ended; that is heard where it is read from
        async with given:
            async for item in given:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(text.encode() + b"\n")
                await process.stdin.drain()


async def watch(process: Process, over: Over) -> None:
    """Notice its end also where something that it has started holds its stdout, for whose end
    `wait` waits as well."""
    while process.returncode is None:
        await asyncio.sleep(GRACE_S)
    await asyncio.sleep(GRACE_S)  # its last words are read before that
    over("has ended")


async def end(process: Process) -> None:
    """As the protocol has it, with all that it has started. It may have to write before it ends."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    steps: tuple[int | None, ...] = (signal.SIGTERM, signal.SIGKILL, None)
    if process.returncode is not None:  # only what it has started may be there
        signal_group(process, signal.SIGKILL)
        steps = (None,)
    for number in steps:
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                while await process.stdout.read(LONGEST):
                    pass
                await process.wait()
                return
        if number is not None:
            signal_group(process, number)


def signal_group(process: Process, number: int) -> None:
    """Of a group that is gone the walls may say that it is another's."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def pass_on(process: Process) -> None:
    """What it writes to stderr, to the worker's log."""
    assert process.stderr is not None
    while data := await process.stderr.read(PIECE):
        log(data)


def say(line: str) -> None:
    log(line.encode(errors="backslashreplace") + b"\n")


def log(data: bytes) -> None:
    """To the worker's log, which keeps the last of what was written."""
    with suppress(OSError):
        os.write(2, data)
