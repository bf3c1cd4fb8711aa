"""The table is the ABI: handlers, stubs and the document are checked against it, row by row."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import msgspec
import pytest

from aios.agents import sdk
from aios.kernel.handlers import HANDLERS
from aios.syscalls import errors, messages, wire
from aios.syscalls.document import document
from aios.syscalls.table import ROWS, TABLE, Row

ROOT = Path(__file__).parent.parent
STUB_IN_CLIENT = "hello"  # part of connecting: agents/client.py


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
    assert len(TABLE) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_complete(row: Row) -> None:
    assert row.doc.endswith(".")
    assert row.right
    msgspec.msgpack.Decoder(row.args)
    msgspec.msgpack.Decoder(row.reply)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"no such field": 1}, row.args)


def test_each_call_has_a_handler_that_takes_its_arguments() -> None:
    assert set(HANDLERS) == set(TABLE) - {"hello"}  # hello makes the process that others act for
    for name, handle in HANDLERS.items():
        wanted = inspect.signature(handle).parameters["args"].annotation
        args = TABLE[name].args
        module = "t" if args.__module__ == messages.__name__ else args.__module__.split(".")[-1]
        assert wanted == f"{module}.{args.__name__}"


def test_each_call_has_one_stub() -> None:
    assert sorted(stubs()) == sorted(set(TABLE) - {STUB_IN_CLIENT})
    assert '"hello"' in (ROOT / "agents/client.py").read_text()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_stub_sends_only_fields_of_the_message(row: Row) -> None:
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
    written = (ROOT / "docs/abi.md").read_text()
    assert written == document(), "run: python -m aios.syscalls.document > docs/abi.md"


def test_the_document_has_every_call_field_and_error() -> None:
    text = document()
    assert "| chain a hash of each step's raw logits |" in text  # a field's own comment
    for row in ROWS:
        section = text.split(f"### `{row.name}`\n")[1].split("\n### ")[0]
        assert row.doc in section
        for field in row.args.__struct_fields__:
            assert f"| `{field}` |" in section
    for code in errors.BY_CODE:
        assert f"| `{code}` |" in text
    assert f"This is version {wire.ABI_VERSION}." in text
