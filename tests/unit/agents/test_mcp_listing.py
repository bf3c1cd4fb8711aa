"""The tools that MCP servers list, odd, endless, and changing."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from bad_server import BAD, bad, call, quiet, specs, use

from aios.agents.mcp import connection as mcp_connection
from aios.agents.mcp.connection import McpConnection
from aios.syscalls.errors import ToolArguments, ToolFailed
from aios.syscalls.tool import McpServer


def test_all_pages_are_listed() -> None:
    found = specs("pages")
    assert list(found) == ["bad.page0", "bad.page1", "bad.page2"]
    assert found["bad.page0"].description == "Does page0."
    assert found["bad.page0"].schema["properties"] == {"n": {"type": "integer"}}


def test_what_is_not_said_to_read_only_has_an_effect() -> None:
    assert {name: spec.effect for name, spec in specs("read only").items()} == {
        "bad.look": False, "bad.write": True,
    }  # fmt: skip


def test_a_tool_whose_name_cannot_be_had_is_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(specs("odd names")) == ["bad.fine"]
    assert "the MCP server bad: the tool 'not fine!' is left out" in capfd.readouterr().err


def test_schemas_that_are_none(capfd: pytest.CaptureFixture[str]) -> None:
    async def body(connection: McpConnection) -> list[str]:
        for tool, says in (
            ("t1", "schema refers to what is not in it"),
            ("t4", "schema cannot be used: maximum recursion depth exceeded"),
            ("t5", "schema cannot be used: invalid literal"),
        ):
            with pytest.raises(ToolFailed, match=says):
                await connection.call(f"bad.{tool}", {"n": 1}, quiet)
        return [spec.name for spec in connection.specs]

    assert use(bad("odd schemas"), body) == ["bad.t1", "bad.t3", "bad.t4", "bad.t5"]
    said = capfd.readouterr().err
    for tool, why in (
        ("t0", "'intger' is not valid"),
        ("t2", "its schema has more than"),
        ("t6", "an integer above 64 bits"),
        ("t7", "nan is no number of JSON"),
        ("t8", "nested deeper than 32"),
    ):
        assert f"'{tool}' is left out: {why}" in said


def test_tools_that_are_odd_cost_themselves_at_most(capfd: pytest.CaptureFixture[str]) -> None:
    found = specs("odd tools")
    kept = [*(f"s{n}" for n in range(5)), *(f"t{n}" for n in range(8))]
    assert list(found) == [f"bad.{name}" for name in ("none", *kept)]
    assert [found[name].schema for name in ("bad.none", "bad.s0", "bad.s1")] == [
        {"type": "object"}
    ] * 3
    assert found["bad.s2"].schema["properties"] == {"n": {"type": "integer"}}
    assert all(spec.effect and spec.result is None for spec in found.values())
    said = capfd.readouterr().err
    for what, why in (
        ("the tool 's5'", "inputSchema.type: 'array' is not 'object'"),
        ("the tool 's6'", 'inputSchema is no schema: "text"'),
        ("the tool 's7'", "inputSchema is no schema: 1"),
        ("a tool without a name", '"no tool"'),
    ):
        assert f"the MCP server bad: {what} is left out: {why}" in said


@pytest.mark.parametrize(
    ("how", "names", "says"),
    [
        ("endless", ["again"], "its list of tools goes in a circle at 'again'"),
        ("many", [f"t{n}" for n in range(512)], "its tools from 't512' on are left out: of a "),
    ],
)
def test_what_there_is_of_a_list_without_end(
    how: str, names: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert list(specs(how)) == [f"bad.{name}" for name in names]
    assert f"the MCP server bad: {says}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [({"n": "x"}, r"\$\.n: 'x' is not of type 'integer'"), ({"n": [1] * 9999}, r"\$")],
)
def test_arguments_that_do_not_fit(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ToolArguments, match=says) as error:
        call("dies", **args)  # it would have died of the call
    assert len(error.value.message) <= 2000


def test_a_server_that_changes_its_tools() -> None:
    async def body(connection: McpConnection) -> list[str]:
        assert [spec.name for spec in connection.specs] == ["bad.go", "bad.echo"]
        assert await connection.call("bad.go", {}, quiet) == "changed"
        await connection.changed()
        return [spec.name for spec in connection.specs]

    assert use(bad("changes"), body) == ["bad.other", "bad.echo"]


def test_a_server_that_changes_its_tools_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_connection, "LIST_INTERVAL_S", 3600.0)

    async def body(connection: McpConnection) -> None:
        assert await connection.call("bad.go", {}, quiet) == "changed"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await connection.changed()

    use(bad("changes"), body)


def test_a_server_that_changes_its_tools_into_none(capfd: pytest.CaptureFixture[str]) -> None:
    async def body(connection: McpConnection) -> list[Any]:
        assert await connection.call("bad.go", {}, quiet) == "changed"
        await connection.changed()
        return connection.specs

    assert use(bad("changes badly"), body) == []
    assert "'go' is left out: inputSchema.type: 'array'" in capfd.readouterr().err


def test_changes_of_a_server_with_the_protocol_of_2026() -> None:
    prober = McpServer(name="it", command=sys.executable, args=[BAD.replace("bad.", "prober.")])

    async def body(connection: McpConnection) -> list[str]:
        assert connection.client.protocol_version == "2026-07-28"
        await connection.call("it.learn", {}, quiet)
        await connection.changed()
        return [spec.name for spec in connection.specs]

    assert use(prober, body) == ["it.try", "it.learn", "it.learned"]
