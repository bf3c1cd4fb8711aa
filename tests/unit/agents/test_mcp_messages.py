"""Messages that MCP servers write are read, mended or let pass, whatever it is."""

from __future__ import annotations

import codecs
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import JSONRPCError, JSONRPCResponse

from aios.agents.mcp.messages import (
    MAX_TOOLS,
    BadMessage,
    mend_result,
    mended_body,
    messages_of,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
ENVELOPE = st.fixed_dictionaries(
    {},
    optional={
        name: JSON | st.sampled_from(["2.0", 1, "notifications/x", {}, {"code": 1, "message": "x"}])
        for name in ("jsonrpc", "id", "method", "params", "result", "error", "level")
    },
)
TOOL = st.fixed_dictionaries(
    {},
    optional={
        name: JSON | st.sampled_from(["x", {"type": "object"}, {"readOnlyHint": True}])
        for name in ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
    },
)


@given(st.binary(max_size=60) | JSON.map(lambda found: json.dumps(found).encode()))
def test_any_line_is_read_or_let_pass(line: bytes) -> None:
    messages_of(line)
    assert mended_body(line) is not None


def test_a_mark_of_the_encoding_before_a_message_is_let_pass() -> None:
    line = b'{"jsonrpc": "2.0", "id": 1, "result": {}}'
    assert messages_of(codecs.BOM_UTF8 + line) == messages_of(line) != []


@given(ENVELOPE, st.integers(0, 60))
def test_what_is_like_a_message_is_one_or_is_let_pass(message: dict[str, Any], cut: int) -> None:
    line = json.dumps(message).encode()
    for each in messages_of(line):
        if isinstance(each, JSONRPCResponse):
            assert isinstance(message["result"], dict)
        if isinstance(each, JSONRPCError):
            assert isinstance(each.error.message, str)
    try:
        messages_of(line[:cut])
    except BadMessage as error:
        assert "jsonrpc" in str(error)


@given(st.lists(TOOL | JSON, max_size=4), st.booleans(), st.sampled_from([None, 7, "x"]))
def test_any_list_of_tools_costs_what_is_no_tool_alone(
    tools: list[Any], modern: bool, cursor: Any
) -> None:
    said: list[str] = []
    result = {"tools": [*tools, {"name": "fine"}], "nextCursor": cursor}
    mend_result(result, modern, said.append)
    assert result["tools"][-1] == {"name": "fine", "inputSchema": {"type": "object"}}
    assert len(result["tools"]) + len(said) == len(tools) + 1
    assert result.get("nextCursor") in (None, "x")


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"jsonrpc":' * 50_000])
def test_what_is_nested_without_end(line: bytes) -> None:
    if line.startswith(b"{"):
        with pytest.raises(BadMessage):
            messages_of(line)
    else:
        assert messages_of(line) == []


def test_of_a_list_without_end_the_first_tools_are_looked_at() -> None:
    said: list[str] = []
    result = {"tools": [{"name": f"t{n}"} for n in range(5000)]}
    mend_result(result, False, said.append)
    assert len(result["tools"]) == MAX_TOOLS + 1
    assert said == [f"of 5000 tools on a page those behind {MAX_TOOLS} are left out"]


def test_what_is_said_of_a_tool_that_is_none_is_short() -> None:
    said: list[str] = []
    long = "x" * 1_000_000
    mend_result({"tools": [{"name": long, "inputSchema": {"items": long}}]}, False, said.append)
    assert [len(line) < 1000 for line in said] == [True]
