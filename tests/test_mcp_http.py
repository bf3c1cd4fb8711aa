"""One AIOS uses the tools of another: an MCP server at an address, which comes and goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import line_of, started
from conftest import Boot, eventually

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import ToolCrashed, ToolFailed

TOKEN = "a token of the test"


def call(aios: Aios, name: str, /, **args: Any) -> Any:
    return aios.call_tool(name, args).result(60).value


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
