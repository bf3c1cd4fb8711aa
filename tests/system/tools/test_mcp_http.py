"""MCP servers at an address: another AIOS, which comes and goes, and one that does what it should
not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commands import line_of, started
from conftest import Boot, eventually
from helpers import call

from aios.agents import Aios, connect
from aios.agents.mcp.connection import connected
from aios.agents.mcp.transport import MAX_MESSAGE_BYTES
from aios.shell.launch import System
from aios.syscalls.errors import AiosError, ToolCrashed, ToolFailed, ToolUnknown
from aios.syscalls.tool import McpServer

TOKEN = "a token of the test"


def refused(aios: Aios) -> str:
    with pytest.raises((ToolCrashed, ToolFailed)) as error:
        call(aios, "other.list_agents")
    return str(error.value)


def test_a_server_at_an_address(
    system: System, boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_MCP_TOKEN", TOKEN)
    with started(system.home, "mcp", "--http", "0") as server:
        url = line_of(server).removeprefix("url: ").strip()
        right, wrong = (
            {"Authorization": f"Bearer {token}"} for token in ("${AIOS_MCP_TOKEN}", "no")
        )
        block = {"other": {"url": url, "headers": right}, "shut": {"url": url, "headers": wrong}}
        file = tmp_path / "mcp.json"
        file.write_text(json.dumps({"servers": block}))
        mine = boot(slots=1, ctx=256, mcp=str(file))
        with connect(mine.home, "test") as aios:
            call(aios, "other.storage_put", path="from/another", text="hello")
            assert call(aios, "other.storage_get", path="from/another")["text"] == "hello"
            with pytest.raises(ToolFailed, match=r"shut cannot be reached at .*401 Unauthorized"):
                call(aios, "shut.list_agents")
            server.kill()
            server.wait()
            assert f"other cannot be reached at {url}" in refused(aios)

            port = url.rpartition(":")[2].partition("/")[0]
            with started(system.home, "mcp", "--http", port) as again:
                assert line_of(again) == f"url: {url}\n"
                eventually(lambda: "other.list_agents" in [spec.name for spec in aios.tools()])
                eventually(lambda: works(aios))
    with connect(system.home) as aios:
        aios.sto_purge("from/another")


def works(aios: Aios) -> bool:
    """Where it did not start a moment ago, it is not tried again at once."""
    try:
        return bool(call(aios, "other.list_agents")["running"] == [])
    except ToolFailed as error:
        assert "did not start" in str(error)
        return False


# --- a server that does what it should not ------------------------------------------------------


EVENTS: dict[str | None, dict[str, Any]] = {
    "refuse, as an event": {"error": {"code": "QUOTA", "message": "the quota is used up"}},
    "half a character": {"result": {"content": [{"type": "text", "text": "\ud83d x"}]}},
}


class Rude(BaseHTTPRequestHandler):
    """Its tool `go` does what it is told as `how`. It knows one session."""

    protocol_version = "HTTP/1.1"
    session, forgets = "one", 404

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method, number = message["method"], message.get("id")
        if method == "initialize":
            version = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
            self.answer(number, **version, serverInfo={"name": "rude", "version": "1"})
        elif number is None:
            self.reply(202)
        elif method not in ("tools/list", "tools/call"):
            self.say(id=number, error={"code": -32601, "message": "Method not found"})
        elif self.headers["Mcp-Session-Id"] != self.session:
            self.say(self.forgets, id=None, error={"code": -32001, "message": "Session not found"})
        elif method == "tools/list":
            self.answer(number, tools=[{"name": "go", "inputSchema": {"type": "object"}}])
        else:
            self.called(number, message["params"]["arguments"].get("how"))

    def do_DELETE(self) -> None:
        self.reply(200)

    def called(self, number: int, how: str | None) -> None:
        if how == "refuse":
            self.say(id=number, error={"code": -32000, "message": "the quota is used up"})
        elif how in ("refuse, 400", "refuse, 404", "refuse, no id"):
            named = None if how == "refuse, no id" else number
            error = {"code": "QUOTA", "message": "the quota is used up"}
            self.say(404 if how == "refuse, 404" else 400, id=named, error=error)
        elif how in EVENTS:
            data = json.dumps({"id": number, **EVENTS[how]}).encode()
            events = b"event: message\nid: 7\ndata:" + data + b"\r\n\r\n"
            self.reply(200, events, {"Content-Type": "text/event-stream"})
        elif how == "be away":
            self.reply(502, b"<p>Try later.</p>", {"Content-Type": "text/html"})
        elif how == "forget":
            self.reply(404)
        elif how in ("flood", "compress"):
            kind = {"Content-Encoding": "gzip"} if how == "compress" else {}
            self.reply(200, b"x" * (MAX_MESSAGE_BYTES + 1), kind)
        elif how == "end":
            self.reply(200, b": nothing\n\n", {"Content-Type": "text/event-stream"})
        else:
            self.answer(number, content=[{"type": "text", "text": "done"}])

    def answer(self, number: int, **result: Any) -> None:
        self.say(id=number, result=result)

    def say(self, status: int = 200, **message: Any) -> None:
        self.reply(status, json.dumps({"jsonrpc": "2.0", **message}).encode())

    def reply(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        about = {"Content-Type": "application/json", "Mcp-Session-Id": self.session}
        self.send_response(status)
        for name, value in {**about, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked has had enough
            self.wfile.write(data)


@pytest.fixture(scope="module")
def rude() -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Rude) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/mcp"
        server.shutdown()


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("refuse", ToolFailed, "^rude: the quota is used up$"),
        ("refuse, 400", ToolFailed, "^rude: the quota is used up$"),
        ("refuse, 404", ToolFailed, "^rude: the quota is used up$"),
        ("refuse, no id", ToolFailed, "^rude: the quota is used up$"),
        ("refuse, as an event", ToolFailed, "^rude: the quota is used up$"),
        ("flood", ToolCrashed, "rude cannot be reached at .*: a message of more than 16777216 b"),
        ("compress", ToolCrashed, "rude cannot be reached at .*: it compresses what it says"),
        ("end", ToolCrashed, "the MCP server rude has ended"),
        ("be away", ToolCrashed, "rude cannot be reached at .*: 502 Bad Gateway$"),
    ],
)
def test_answers_that_are_errors(rude: str, how: str, kind: type[AiosError], says: str) -> None:
    async def use() -> None:
        async with asyncio.timeout(60), connected(McpServer(name="rude", url=rude)) as connection:
            await connection.call("rude.go", {"how": how}, lambda *_: None)

    with pytest.raises(kind, match=says):
        asyncio.run(use())


def test_half_a_character_in_an_event(rude: str) -> None:
    async def use() -> Any:
        async with asyncio.timeout(60), connected(McpServer(name="rude", url=rude)) as connection:
            return await connection.call("rude.go", {"how": "half a character"}, lambda *_: None)

    assert asyncio.run(use()) == "\ufffd x"


@pytest.mark.parametrize("known", [True, False])
def test_what_an_address_has_of_keys_is_not_told(rude: str, known: bool) -> None:
    place = rude if known else "http://127.0.0.1:9/mcp"
    url = place.replace("//", "//ann:secret@") + "?key=secret"

    async def use() -> None:
        async with asyncio.timeout(60), connected(McpServer(name="rude", url=url)) as connection:
            await connection.call("rude.go", {"how": "forget"}, lambda *_: None)

    why = "404 Not Found" if known else ".*"
    with pytest.raises(ToolCrashed, match=f"cannot be reached at {place}: {why}$") as error:
        asyncio.run(use())
    assert "secret" not in str(error.value)


def test_a_session_that_the_server_has_forgotten(rude: str, boot: Boot, tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"rude": {"url": rude}}}))
    with connect(boot(slots=1, ctx=256, mcp=str(file)).home, "test") as aios:
        assert call(aios, "rude.go") == "done"
        for session, status in (("two", 404), ("three", 400)):
            Rude.session, Rude.forgets = session, status
            with pytest.raises(ToolUnknown, match=f"rude cannot be reached at .*{status}"):
                call(aios, "rude.go")
            assert call(aios, "rude.go") == "done"
