"""The values that callers send: plain ones to a depth, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from aios.kernel.entry.envelope import MAX_DEPTH, arguments
from aios.shell.escape import as_json_text
from aios.syscalls.errors import Malformed
from aios.syscalls.table import TABLE


def checked(value: Any) -> str:
    row = TABLE["msg.send"]
    try:
        arguments(row, msgspec.Raw(msgspec.msgpack.encode({"to": 1, "body": value})))
    except Malformed as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    "make", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: {1: [inner]}]
)
def test_plain_values_are_let_through_to_a_depth(make: Any) -> None:
    value: Any = None
    levels = 2 if isinstance(make(None), dict) and 1 in make(None) else 1
    for depth in range(levels, MAX_DEPTH + 1, levels):
        value = make(value)
        assert checked(value) == "", depth
    assert checked(make(value)) == f"msg.send: nested deeper than {MAX_DEPTH}"


def test_what_is_not_plain_is_refused_wherever_it_is() -> None:
    nan = math.nan
    value: Any
    for value in (nan, [nan], {"a": [1, {"b": nan}]}, [[[0.5, nan]]]):
        assert checked(value) == "msg.send: holds what is not plain: nan"
    for value in ({1.5: 1}, [{None: 1}], {"a": {b"x": 1}}, {True: 1}):
        assert "keys are strings or integers" in checked(value)
    for value in (None, True, 1, -1.5, "x", b"x", [], {}, [{}, []], {"a": {1: {"b": []}}}):
        assert as_json_text(value)
        assert checked(value) == ""


def test_a_worker_says_nothing_that_is_nested_too_deep_for_who_reads_it() -> None:
    deep: Any = 0
    for _ in range(100):
        deep = [deep]
    spec = {"name": "lab.deep", "description": "", "schema": {"default": deep}}
    for name, args in (("tool.done", {"id": 1, "value": deep}), ("tool.offer", {"tools": [spec]})):
        with pytest.raises(Malformed, match="nested deeper"):
            arguments(TABLE[name], msgspec.Raw(msgspec.msgpack.encode(args)))
