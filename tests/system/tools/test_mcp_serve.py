"""`aios mcp`, spoken to by the official client over stdio: what it offers, agents that it runs."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from commands import line_of, started
from conftest import Boot, eventually
from helpers import kill_kernel
from mcp import Client, MCPError
from mcp_client import by_stdio, refusal, value, words
from mcp_types import INVALID_PARAMS

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.shell.mcp.tools import ServedTools
from aios.syscalls.errors import ProcessGone, TimedOut

Program = Callable[[str], str]


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
