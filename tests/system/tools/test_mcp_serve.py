"""`aios mcp`, spoken to by the official client, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import pytest
from commands import AIOS, environment, line_of, run_process, started
from conftest import Boot, eventually, on_tiny
from helpers import kill_kernel
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR

from aios.agents import Aios, connect
from aios.shell.cli import execute
from aios.shell.launch import System
from aios.shell.mcp.tools import ServedTools
from aios.syscalls.errors import ProcessGone, TimedOut

Program = Callable[[str], str]
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


async def told(progress: float, total: float | None = None, message: str | None = None) -> None:
    TOLD.append((progress, message))


TOLD: list[tuple[float, str | None]] = []


@pytest.fixture(autouse=True)
def none_told() -> None:
    TOLD.clear()


# --- what it offers ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_tools(system: System, mode: str) -> None:
    async def body(client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {
            "run_agent", "list_agents", "generate", "memory_get", "memory_put", "memory_scan",
            "storage_get", "storage_put", "storage_list", "storage_search",
        }  # fmt: skip
        assert all(tool.description for tool in tools.values())
        hints = {name: tool.annotations for name, tool in tools.items()}
        writing = {name for name, hint in hints.items() if hint and not hint.read_only_hint}
        assert writing == {"run_agent", "generate", "memory_put", "storage_put"}
        assert tools["storage_put"].input_schema["required"] == ["path", "text"]

    by_stdio(system.home, body, mode=mode)


def test_memory_and_storage(system: System, aios: Aios) -> None:
    text = "The ferry to Naxos leaves at seven. " * 3000  # more than a call of the kernel holds

    async def body(client: Client) -> None:
        await value(client, "memory_put", agent="/mcp", items={"a/1": [1], "a/2": "x", "b": None})
        got = await value(client, "memory_get", agent="/mcp", keys=["a/1", "none"])
        assert got == {"items": {"a/1": [1]}}
        page = await value(client, "memory_scan", agent="/mcp", prefix="a/")
        assert page == {"items": {"a/1": [1], "a/2": "x"}, "after": None}

        put = await value(client, "storage_put", path="mcp/ferry.txt", text=text, tags=["sea"])
        assert put == {"path": "mcp/ferry.txt", "version": 1, "size": len(text)}
        said = await refusal(client, "storage_put", path="mcp/ferry.txt", text="no", if_version=7)
        assert "version" in said
        part = await value(client, "storage_get", path="mcp/ferry.txt", count=1000)
        assert (part["text"], part["next"]) == (text[:1000], 1000)
        last = await value(client, "storage_get", path="mcp/ferry.txt", offset=len(text) - 5)
        assert last["text"] == text[-5:]
        assert "next" not in last
        listed = await value(client, "storage_list", prefix="mcp")
        assert [row["path"] for row in listed["objects"]] == ["mcp/ferry.txt"]
        assert "mcp/none" in await refusal(client, "storage_get", path="mcp/none")
        read = await client.read_resource("aios://storage/mcp/ferry.txt")
        assert words(read.contents) == text

    by_stdio(system.home, body)
    aios.sto_purge("mcp/ferry.txt")
    aios.mem_clear(principal="/mcp")


def test_contents_that_are_no_text(system: System, aios: Aios) -> None:
    aios.sto_put("mcp/bytes", b"\xff\x00")
    aios.sto_put("mcp/cut", "aä".encode())

    async def body(client: Client) -> None:
        assert (await value(client, "storage_get", path="mcp/bytes"))["base64"] == "/wA="
        part = await value(client, "storage_get", path="mcp/cut", count=2)
        assert (part["text"], part["next"]) == ("a", 1)
        read = await client.read_resource("aios://storage/mcp/bytes")
        assert read.contents[0].model_dump()["blob"] == "/wA="
        with pytest.raises(MCPError, match="mcp/none") as caught:
            await client.read_resource("aios://storage/mcp/none")
        assert caught.value.error.code == INVALID_PARAMS

    by_stdio(system.home, body)
    aios.sto_purge("mcp/bytes")
    aios.sto_purge("mcp/cut")


def test_search(system: System, aios: Aios) -> None:
    aios.sto_put("mcp/naxos", "The ferry to Naxos leaves at seven.")
    aios.sto_search("ferry", fresh=True)

    async def body(client: Client) -> None:
        found = await value(client, "storage_search", query="when does the boat go", path="mcp")
        assert found["passages"][0]["path"] == "mcp/naxos"

    by_stdio(system.home, body)
    aios.sto_purge("mcp/naxos")


def test_generate(system: System, aios: Aios) -> None:
    async def body(client: Client) -> Any:
        args = {"prompt": "Say hello.", "max_tokens": 8}
        result = await client.call_tool("generate", args, progress_callback=told)
        return result.structured_content

    answer = by_stdio(system.home, body)
    assert answer["text"] == aios.generate("Say hello.", max_tokens=8, temperature=0.0).text
    steps = [done for done, _ in TOLD]
    assert steps == sorted(steps)
    assert steps


# --- agents -----------------------------------------------------------------------------------


def test_run_agent(system: System, program: Program) -> None:
    works = program("print('at it', flush=True)\nreturn {'task': task, 'raw': b'x'}")
    fails = program("print('no luck')\nsys.exit(3)")

    async def body(client: Client) -> None:
        known = await value(client, "list_agents")
        assert known["programs"]["agent1"] == fails
        assert "summarize" in known["programs"]
        result = await client.call_tool(
            "run_agent", {"program": "agent0", "task": {"n": 1}}, progress_callback=told
        )
        assert result.structured_content == {
            "result": {"task": {"n": 1}, "raw": "eA=="}, "printed": "at it\n",
        }  # fmt: skip
        assert "at it" in [message for _, message in TOLD]
        said = await refusal(client, "run_agent", program="agent1")
        assert "ended with code 3" in said
        assert "no luck" in said
        said = await refusal(client, "run_agent", program="/bin/sh")
        assert "no agent '/bin/sh'; known:" in said

    by_stdio(system.home, body, "--agent", works, "--agent", fails)


def test_what_agents_reach_is_said_at_the_start(
    system: System, program: Program, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    note = tmp_path / "open" / "note"
    note.write_text("for you")
    reads = program("return open(task, 'a').close() or open(task).read()")

    async def body(client: Client) -> Any:
        return await client.call_tool("run_agent", {"program": "agent1", "task": str(note)})

    assert by_stdio(system.home, body, "--agent", reads).is_error
    allowed = by_stdio(system.home, body, "--agent", reads, "--write", str(tmp_path / "open"))
    assert allowed.structured_content["result"] == "for you"


def test_cancelling_ends_the_agent(system: System, aios: Aios, program: Program) -> None:
    waits = program("print('up', flush=True)\naios.recv()")

    async def body(client: Client) -> None:
        call = asyncio.create_task(
            client.call_tool("run_agent", {"program": "agent0"}, progress_callback=told)
        )
        while not TOLD:
            await asyncio.sleep(0.01)
        assert [row.name for row in aios.ps()] == ["agent0"]
        call.cancel()
        await asyncio.wait([call])
        eventually(lambda: not aios.ps())
        assert (await value(client, "list_agents"))["running"] == []

    by_stdio(system.home, body, "--agent", waits)


def test_whoever_leaves_ends_the_agent(system: System, aios: Aios, program: Program) -> None:
    waits = program("print('up', flush=True)\naios.recv()")

    async def body(client: Client) -> None:
        call = asyncio.create_task(client.call_tool("run_agent", {"program": "agent0"}))
        while not aios.ps():
            await asyncio.sleep(0.01)
        assert not call.done()

    by_stdio(system.home, body, "--agent", waits)
    eventually(lambda: not aios.ps())


def test_whoever_dies_meanwhile_leaves_nothing_and_no_traceback(
    system: System, aios: Aios, program: Program
) -> None:
    talks = program("while True:\n    print('up', flush=True)\n    time.sleep(0.05)")
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x",
             "version": "1"}}  # fmt: skip
    args = {"name": "run_agent", "arguments": {"program": "agent0"}, "_meta": {"progressToken": 1}}
    with started(system.home, "mcp", "--agent", talks, stdin=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stderr is not None
        for number, (method, params) in enumerate([("initialize", hello), ("tools/call", args)]):
            request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        while "progress" not in line_of(server):
            pass
        server.stdout.close()
        server.stdin.close()
        assert server.stderr.read() == ""
        assert server.wait(timeout=20) == 0
    eventually(lambda: not aios.ps())


def test_the_kernel_killed_meanwhile(boot: Boot, program: Program) -> None:
    waits = program("print('up', flush=True)\nreturn aios.recv().body")
    mine = boot()

    async def body(client: Client) -> Any:
        call = asyncio.create_task(
            client.call_tool("run_agent", {"program": "agent0"}, progress_callback=told)
        )
        while not TOLD:
            await asyncio.sleep(0.01)
        with connect(mine.home) as aios:
            kill_kernel(aios)
            assert "running" in await value(client, "list_agents")
            aios.send("agent0", "go")
        return (await call).structured_content

    ended = by_stdio(mine.home, body, "--agent", waits)
    assert ended == {"result": "go", "printed": "up\n"}


# --- the server itself ------------------------------------------------------------------------


def test_without_a_kernel_each_call_says_so(tmp_path: Path) -> None:
    async def body(client: Client) -> None:
        assert len((await client.list_tools()).tools) == 10
        for _ in range(2):
            said = await refusal(client, "list_agents")
            assert "no kernel answers" in said
            assert "aios start" in said

    by_stdio(tmp_path, body)


def test_a_system_that_comes_back(boot: Boot) -> None:
    first = boot()

    async def body(client: Client) -> None:
        await value(client, "storage_put", path="a", text="kept")
        first.end()
        assert "kernel" in await refusal(client, "storage_get", path="a")
        second = System(first.home, on_tiny(first.home, slots=2, ctx=1024), detach=True)
        second.ready()
        try:
            assert (await value(client, "storage_get", path="a"))["text"] == "kept"
        finally:
            second.end()

    by_stdio(first.home, body)


@asynccontextmanager
async def by_http(url: str, token: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


def test_http(system: System) -> None:
    with started(system.home, "mcp", "--http", "0") as server:
        url = line_of(server).removeprefix("url: ").strip()
        token = line_of(server).removeprefix("header: Authorization: Bearer ").strip()
        assert url.startswith("http://127.0.0.1:")

        async def use() -> None:
            async with by_http(url, token) as client:
                assert (await value(client, "list_agents"))["running"] == []
            for wrong in ("x", token[:-1], token + "x"):
                answer = httpx2.post(url, headers={"Authorization": f"Bearer {wrong}"})
                assert answer.status_code == 401
                assert "token" in answer.text
            elsewhere = {"Authorization": f"Bearer {token}", "Host": "evil.example"}
            answer = httpx2.post(url, headers=elsewhere, json={"method": "ping"})
            assert (answer.status_code, answer.text) == (421, "Invalid Host header")

        asyncio.run(use())
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 130


def test_an_agent_has_the_name_that_its_class_declares(system: System, tmp_path: Path) -> None:
    path = tmp_path / "work.py"
    path.write_text(
        "from aios.agents import Agent\n\n\nclass Boss(Agent):\n    name = 'boss'\n\n"
        "    def run(self, task):\n        return self.aios.whoami().principal\n"
    )

    async def body(client: Client) -> None:
        assert (await value(client, "run_agent", program="work"))["result"] == "/boss"

    by_stdio(system.home, body, "--agent", str(path))


def test_an_agent_that_ends_of_itself_before_kill_is_no_error(tmp_path: Path) -> None:
    ends = {"proc.wait": TimedOut("not within 2 s"), "proc.kill KILL": ProcessGone("it has ended")}

    async def call(_: type, name: str, *, pid: int, signal: str = "", **__: float) -> None:
        if error := ends.pop(f"{name} {signal}".strip(), None):
            raise error

    asyncio.run(ServedTools(tmp_path, {}, {})._finish_off(Mock(call=call), 1))
    assert not ends


def test_two_agents_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / folder / "work.py" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text("")
    assert execute(["mcp", *(f"--agent={path}" for path in paths)]) == 2
    assert "two --agent have one name" in capsys.readouterr().err


def test_a_port_that_is_taken(system: System) -> None:
    with started(system.home, "mcp", "--http", "0") as server:
        port = line_of(server).rpartition(":")[2].partition("/")[0]
        done = run_process(system.home, "mcp", "--http", port)
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr.startswith(f"aios: port {port}: Address already in use\nhint: ")
        server.terminate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(system: System, number: signal.Signals) -> None:
    with started(system.home, "mcp", stdin=subprocess.PIPE) as server:
        assert server.stdin is not None
        server.stdin.write('{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
        server.stdin.flush()
        assert '"id":1' in line_of(server)
        server.send_signal(number)
        assert server.wait(timeout=20) == 130


PING = '{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


def answers(home: Path, text: str, count: int) -> list[Any]:
    with started(home, "mcp", stdin=subprocess.PIPE) as server:
        assert server.stdin is not None
        server.stdin.write(text)
        server.stdin.flush()
        lines = [json.loads(line_of(server)) for _ in range(count)]
        server.stdin.close()
        assert server.wait(timeout=20) == 0
    return lines


@pytest.mark.parametrize(("message", "code"), [
    ('{"jsonrpc":"2.0","id":1,', PARSE_ERROR),
    ("hello", PARSE_ERROR),
    ('{"jsonrpc":"2.0","id":1,"method":7}', INVALID_REQUEST),
    ('{"id":1,"method":"ping"}', INVALID_REQUEST),
    ('[{"jsonrpc":"2.0","id":1,"method":"ping"}]', INVALID_REQUEST),
    ("7", INVALID_REQUEST),
])  # fmt: skip
def test_what_is_no_message_is_answered_and_the_next_one_too(
    tmp_path: Path, message: str, code: int
) -> None:
    refused, answered = answers(tmp_path, f"\n{message}\n{PING}", 2)
    assert (refused["id"], refused["error"]["code"]) == (None, code)
    assert (answered["id"], answered["result"]) == (1, {})


def test_a_mark_of_the_encoding_before_the_first_message_is_let_pass(tmp_path: Path) -> None:
    assert answers(tmp_path, "\ufeff" + PING, 1) == [{"jsonrpc": "2.0", "id": 1, "result": {}}]


def test_the_package_is_asked_for_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert execute(["--home", str(tmp_path), "mcp"]) == 78
    assert "pip install 'aios-system[mcp]'" in capsys.readouterr().err
