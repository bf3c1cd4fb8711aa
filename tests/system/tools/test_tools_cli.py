"""`aios tool` as a person runs it; the commands of docs/tools.md are run as well."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import pytest
from click.testing import CliRunner
from commands import AIOS, LIMIT, environment, run, started
from conftest import eventually, run_system
from places import DOCS, SUPPORT

from aios.agents import connect
from aios.shell.cli import cli
from aios.shell.commands.tools import about, arguments_of, follow
from aios.shell.launch import System
from aios.shell.output import Screen, bars
from aios.syscalls.tool import JobProgress, Spec, ToolProgress

LAB = str(SUPPORT / "toolbox.py")


@pytest.fixture(scope="module")
def lab(homes: Path) -> Iterator[System]:
    tools = {"lab": {"program": LAB}, "broken": {"program": "/nowhere.py"}}
    yield from run_system(homes / "tools-cli", {"slots": 1, "ctx": 256, "tools": tools})


@pytest.fixture
def home(lab: System) -> Iterator[Path]:
    yield lab.home
    with connect(lab.home) as aios:  # workers end with the command that had them
        eventually(lambda: not aios.ps())
        assert aios.check() == []


def done(home: Path, *args: str, **options: Any) -> str:
    finished = run(home, "tool", *args, **options)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_tools_are_listed_with_boxes_that_did_not_start(home: Path) -> None:
    text = done(home, "list")
    assert re.search(r"^lab\.change +yes +Append a line", text, re.MULTILINE)
    assert re.search(r"^broken \(not there\) .*/nowhere\.py", text, re.MULTILINE)
    found = json.loads(done(home, "list", "--json"))
    assert {tool["name"] for tool in found["tools"]} > {"lab.add", "calculate", "sql.query"}


def test_a_list_that_is_waited_for_says_so(home: Path) -> None:
    argv = [*AIOS[1:], "tool", "list"]
    seen = pexpect.spawn(AIOS[0], argv, env=environment(home), timeout=LIMIT, encoding="utf-8")
    seen.expect("asking the toolboxes what they offer")
    seen.expect(pexpect.EOF)


def test_a_tool_is_shown(home: Path) -> None:
    assert "Add two numbers." in done(home, "show", "lab.add")
    assert json.loads(done(home, "show", "lab.add", "--json"))["schema"]["required"] == ["a"]


def test_a_tool_is_called(home: Path) -> None:
    assert done(home, "call", "lab.add", "a=40", "b=2") == "42\n"
    assert done(home, "call", "lab.add", "--args", '{"a": 1}', "b=2") == "3\n"
    assert done(home, "call", "lab.add", "--args", "-", stdin='{"a": 1}') == "2\n"
    assert json.loads(done(home, "call", "lab.count", "to=3", "--json"))["value"] == 3
    long = run(home, "tool", "call", "lab.long", "size=100000")
    assert len(long.stdout) == 2001
    path = re.search(r"100000 bytes in all: aios sto get (\S+)", long.stderr)
    assert path
    assert run(home, "sto", "get", path[1]).stdout == "x" * 100_000


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("call", "lab.none"), 1, "no tool 'lab.none'"),
        (("call", "lab.add", "a"), 78, "'a' is not NAME=VALUE"),
        (("call", "lab.add", "--args", "{"), 78, "--args is not JSON"),
        (("call", "lab.add", "--args", "[" * 100_000), 78, "--args is not JSON"),
        (("call", "lab.add", "--args", "[]"), 78, "--args is not an object"),
        (("call", "lab.add", "a=x"), 1, "Expected `int`"),
        (("call", "lab.fail", "text=because"), 1, "ValueError: because"),
        (("call", "lab.hang"), 1, "was not done within 0.5 s"),
        (("call", "broken.a"), 1, "the toolbox broken did not start: "),
        (("show", "lab.none"), 1, "no tool"),
        (("call",), 2, "Missing argument"),
    ],
)
def test_what_is_wrong_is_said(home: Path, args: tuple[str, ...], code: int, said: str) -> None:
    finished = run(home, "tool", *args)
    assert (finished.returncode, finished.stdout) == (code, "")
    assert said in finished.stderr


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "12", "12"),
        ({"enum": ["1", "2"]}, "2", "2"),
        ({"type": "integer"}, "12", 12),
        ({"anyOf": [{"type": "array"}, {"type": "string"}]}, "[1]", [1]),
        ({}, "a b", "a b"),
        (True, "12", 12),
    ],
)
def test_a_value_is_text_where_the_schema_says_so(schema: Any, text: str, value: Any) -> None:
    spec = Spec(name="a", description="", schema={"properties": {"b": schema}})
    assert arguments_of(spec, (f"b={text}",), None) == {"b": value}


def test_ctrl_c_ends_the_tool(home: Path, tmp_path: Path) -> None:
    with connect(home) as aios, started(home, "tool", "call", "lab.sleep") as process:
        worker = eventually(lambda: [r for r in aios.ps() if r.name == "lab" and r.calls > 1])[0]
        eventually(lambda: b"asleep" in aios.log(worker.pid).data)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        eventually(lambda: not aios.ps())


def test_what_a_tool_says_of_its_progress_is_no_markup() -> None:
    shown = StringIO()
    steps = [ToolProgress(done=1, total=2, message="[/red] half\x1b[2J")]
    screen = Screen(file=shown, force_terminal=True, width=100)
    with bars("{task.description}", screen=screen) as bar:
        follow(steps, bar)
        bar.refresh()
    assert "[/red] half\\x1b[2J" in shown.getvalue()


def test_a_tool_may_say_late_how_much_there_is_to_do() -> None:
    screen = Screen(file=StringIO(), force_terminal=True, width=100)
    with bars("{task.description}", screen=screen) as bar:
        follow([], bar)
        assert not bar.tasks[0].visible
        steps = [(0.0, None, ""), (1.0, 2.0, "half")]
        follow([ToolProgress(done=d, total=t, message=m) for d, t, m in steps], bar)
        assert (bar.tasks[1].total, bar.tasks[1].completed, bar.tasks[1].visible) == (2, 1, True)


def test_workers_are_listed_when_they_are_asked_for(home: Path) -> None:
    done(home, "list")  # each box starts one, which ends when it has said what it serves

    def names(*options: str) -> set[str]:
        return {row["name"] for row in json.loads(run(home, "ps", "--json", *options).stdout)}

    assert {"lab", "calculate"} <= names("--all", "--workers")
    assert not names("--all") & {"lab", "calculate"}


@pytest.mark.parametrize(
    ("description", "shown"),
    [
        ("Say one thing.", "Say one thing."),
        ("A sentence that goes on\nin the next line.\n\nMore.", "A sentence that goes on in the"
         " next line."),
        ("word " * 99, "word " * 62 + "word..."),
        ("", ""),
    ],
)  # fmt: skip
def test_a_description_is_whole_or_ends_at_a_word(description: str, shown: str) -> None:
    assert about(Spec(name="a", description=description, schema={})) == shown


@pytest.mark.parametrize("done", [float("inf"), float("nan")])
def test_progress_is_finite(done: float) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"id": 1, "done": done}, JobProgress)


def test_the_commands_say_how(home: Path) -> None:
    for name in ("", "list", "show", "call"):
        text = CliRunner().invoke(cli, ["tool", *([name] if name else []), "--help"]).output
        assert "Example" in text


def test_the_guides_commands_run(home: Path) -> None:
    guide = (DOCS / "tools.md").read_text()
    lines = [
        line.removeprefix("$ aios ")
        for block in re.findall(r"```console\n(.*?)```", guide, re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ aios ")
    ]
    assert len(lines) >= 3
    outputs = []
    for line in lines:
        finished: subprocess.CompletedProcess[str] = run(home, *shlex.split(line))
        assert finished.returncode == 0, (line, finished.stderr)
        outputs.append(finished.stdout)
    assert "18446744073709551616" in outputs[-1]
