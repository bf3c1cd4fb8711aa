"""The table is the ABI: handlers, stubs and the document are checked against it, row by row."""

from __future__ import annotations

import ast
import inspect
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from places import PROJECT
from turns import Turns

from aios.agents.sdk import aios as sdk
from aios.kernel.access.gate import Gate
from aios.kernel.process import ProcessTable
from aios.syscalls import errors, sto, wire
from aios.syscalls.document import document
from aios.syscalls.proc import Limits
from aios.syscalls.table import SYSCALLS, TABLE, Syscall

STUB_IN_CLIENT = "hello"  # part of connecting: agents/sdk/connection.py


def stubs() -> list[str]:
    """The call that each method of class Aios is there for: the first that its source names."""
    found = []
    methods = [
        method
        for cls in sdk.Aios.__mro__[:-1]
        for tree in ast.parse(inspect.getsource(cls)).body
        if isinstance(tree, ast.ClassDef)
        for method in tree.body
    ]
    for method in methods:
        if isinstance(method, ast.FunctionDef) and method.name != "close":  # ends; no stub
            lines = sorted(
                (node.lineno, node.value)
                for node in ast.walk(method)
                if isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value in TABLE
            )
            found += [call for _, call in lines[:1]]
    return found


def test_each_name_is_in_the_table_once() -> None:
    assert len(TABLE) == len(SYSCALLS)


@pytest.mark.parametrize("row", SYSCALLS, ids=lambda row: row.name)
def test_a_row_is_complete(row: Syscall) -> None:
    assert row.doc.endswith(".")
    assert row.right
    msgspec.msgpack.Decoder(row.args)
    msgspec.msgpack.Decoder(row.reply)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"no such field": 1}, row.args)


def test_each_call_has_a_handler_that_takes_its_arguments(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    served = turns.kernel.trap.handlers
    assert set(served) == set(TABLE) - {"hello"}  # hello makes the process that others act for
    for name, handle in served.items():
        does: Any = handle.func if isinstance(handle, partial) else handle
        wanted = inspect.signature(does).parameters["args"].annotation
        assert eval(wanted, does.__globals__) is TABLE[name].args, name
    turns.close()


def test_each_call_has_one_stub() -> None:
    assert sorted(stubs()) == sorted(set(TABLE) - {STUB_IN_CLIENT})
    assert '"hello"' in (PROJECT / "agents/sdk/connection.py").read_text()


@pytest.mark.parametrize("row", SYSCALLS, ids=lambda row: row.name)
def test_a_stub_sends_only_fields_of_the_message(row: Syscall) -> None:
    """Keyword arguments of each `_call(type, name, ...)` and `start(name, ...)` of the SDK."""
    sources = {inspect.getsourcefile(cls) or "" for cls in sdk.Aios.__mro__[:-1]}
    nodes = [node for path in sources for node in ast.walk(ast.parse(Path(path).read_text()))]
    for node in nodes:
        if isinstance(node, ast.Call) and any(
            isinstance(arg, ast.Constant) and arg.value == row.name for arg in node.args
        ):
            sent = {keyword.arg for keyword in node.keywords if keyword.arg}
            assert sent <= set(row.args.__struct_fields__)


def test_every_error_says_what_it_means() -> None:
    for cls in errors.BY_CODE.values():
        assert cls.__doc__, cls


def test_the_document_is_what_the_table_says() -> None:
    written = (PROJECT / "docs/abi.md").read_text()
    assert written == document(), "run: python -m aios.syscalls.document > docs/abi.md"


def test_the_document_has_every_call_field_and_error() -> None:
    text = document()
    assert "| chain a hash of each step's raw logits |" in text  # a field's own comment
    for row in SYSCALLS:
        section = text.split(f"### `{row.name}`\n")[1].split("\n### ")[0]
        assert row.doc in section
        for field in row.args.__struct_fields__:
            assert f"| `{field}` |" in section
    for code in errors.BY_CODE:
        assert f"| `{code}` |" in text
    assert f"This is version {wire.ABI_VERSION}." in text


# --- what a call is about -------------------------------------------------------------------------

NAMES: dict[str, tuple[object, object]] = {  # fields that name something: two values of each
    "owner": ("/b", "/c"), "principal": ("/b", "/c"), "pid": (1, 2), "to": (1, 2),
    "path": ("x", "y"), "prefix": ("x", "y"), "program": ("x", "y"),
    "changes": (
        [sto.Change("x"), sto.Change("y")], [sto.Change("x"), sto.Change("z")],
    ),
}  # fmt: skip
ELSEWHERE = {
    ("proc.wait", "pid"): "children alone can be waited for",
    ("llm.open", "owner"): "another's are opened by a person alone",
    ("acc.check", "pid"): "an agent asks of itself alone",
    ("acc.check", "principal"): "likewise",
    ("mem.scan", "prefix"): "rules about memory say whose it is, not which key",
    ("acc.grant", "to"): "what is handed on is worth what the giver may do",
    ("sto.share", "to"): "what is shared is asked about: its owner shares it with whom it likes",
}
NAMED = [
    (row, name)
    for row in SYSCALLS if row.right != "none"
    for name in row.args.__struct_fields__ if name in NAMES
]  # fmt: skip


@pytest.mark.parametrize(("row", "name"), NAMED, ids=lambda each: getattr(each, "name", each))
def test_the_gate_is_asked_about_all_that_a_call_names(row: Syscall, name: str) -> None:
    """A rule, and a person's answer, is about what the gate is asked about."""
    if (row.name, name) in ELSEWHERE:
        return
    table = ProcessTable(9, 9, 9)
    caller, _ = (table.add("agent", each, 0, 0, Limits(), 0.0) for each in "ab")
    gate = Gate(table, Mock(groups={}, grants={}), lambda *_: False)
    plain = {
        field.name: Mock() for field in msgspec.structs.fields(row.args)
        if field.required and field.name != name
    } | {"path": "x", "args": {}, "nice": 0, "changes": [sto.Change("x")]}  # fmt: skip
    given = {field: plain[field] for field in row.args.__struct_fields__ if field in plain}

    def asked(value: object) -> list[str]:
        return [
            each.object for each in gate.requests(caller, row, row.args(**given | {name: value}))
        ]

    first, second = NAMES[name]
    assert asked(first) != asked(second)
