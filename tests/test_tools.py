"""The tool manager: real workers, with tools that fail in every way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Boot, Program, eventually, run_system
from helpers import run

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import (
    AiosError,
    Cancelled,
    Denied,
    NotFound,
    TimedOut,
    ToolArguments,
    ToolCrashed,
    ToolFailed,
    ToolTimeout,
    ToolUnknown,
)

LAB = str(Path(__file__).parent / "toolbox.py")


@pytest.fixture(scope="module")
def lab(homes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    place = str(tmp_path_factory.getbasetemp())
    settings: dict[str, Any] = {
        "slots": 1, "ctx": 256, "grace": 0.5,
        "walls": {"read": [place], "write": [place]},
        "tools": {
            "lab": {"program": LAB, "idle": 300},
            "fresh": {"program": LAB, "fresh": True},
            "none": {"program": "/nowhere/tools.py"},
        },
    }  # fmt: skip
    yield from run_system(homes / "lab", settings)


@pytest.fixture
def aios(lab: System) -> Iterator[Aios]:
    with connect(lab.home, "test") as aios:
        yield aios
        eventually(lambda: [row.name for row in aios.ps() if row.name != "lab"] == [])
        assert aios.check() == []
    with connect(lab.home) as after:  # its workers go with it
        eventually(lambda: not after.ps())


def call(aios: Aios, name: str, /, **args: Any) -> Any:
    return aios.call_tool(name, args).result(30).value


def test_a_call_gets_what_the_function_returns(aios: Aios) -> None:
    assert call(aios, "lab.add", a=2, b=3) == 5
    assert call(aios, "lab.add", a=2) == 3
    assert [row.name for row in aios.ps()] == ["lab"]  # one worker, warm


def test_tools_are_listed_with_their_schemas(aios: Aios) -> None:
    listed = aios.toolboxes()
    specs = {spec.name: spec for spec in listed.tools}
    assert specs["lab.add"].schema["required"] == ["a"]
    assert specs["lab.change"].effect
    assert "calculate" in specs
    boxes = {box.name: box for box in listed.boxes}
    assert "/nowhere/tools.py" in boxes["none"].error
    assert boxes["lab"].error == ""


@pytest.mark.parametrize(
    ("name", "args", "error", "said"),
    [
        ("lab.add", {}, ToolArguments, "missing required field `a`"),
        ("lab.add", {"a": "2"}, ToolArguments, "Expected `int`"),
        ("lab.add", {"a": 2, "c": 3}, ToolArguments, "unknown field `c`"),
        ("lab.fail", {"text": "why not"}, ToolFailed, "ValueError: why not"),
        ("lab.leave", {"code": 3}, ToolFailed, "SystemExit: 3"),
        ("lab.crash", {}, ToolCrashed, "signal SEGV"),
        ("lab.hang", {}, ToolTimeout, "was not done within 0.5 s"),
        ("lab.odd", {}, ToolFailed, "cannot be used"),
        ("lab.none", {}, NotFound, "lab.add"),
        ("nothing", {}, NotFound, "aios tool list"),
        ("none.at_all", {}, ToolFailed, "/nowhere/tools.py"),
    ],
)
def test_what_goes_wrong_has_one_clear_end(
    aios: Aios, name: str, args: dict[str, Any], error: type[AiosError], said: str
) -> None:
    with pytest.raises(error, match=said.replace("(", r"\(")):
        aios.call_tool(name, args).result(30)
    assert call(aios, "lab.poisoned") == 0  # whoever comes next meets nothing of it
    assert call(aios, "lab.add", a=1) == 2
