"""`aios mcp` as a process: over HTTP, without a kernel, ended, and sent what is no message."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commands import line_of, run_process, started
from conftest import Boot, on_tiny
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_client import by_stdio, refusal, value
from mcp_types import INVALID_REQUEST, PARSE_ERROR

from aios.shell.cli import execute
from aios.shell.launch import System


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
