"""Tables in a terminal of 80 columns: nothing is cut, and a row is a line where it can be one."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from process_row import row

from aios.shell import render
from aios.shell.output import Screen, show
from aios.syscalls.acc import GrantRow
from aios.syscalls.proc import ProcessInfo
from aios.syscalls.rules import Bounds
from aios.syscalls.sto import Version

BIG: dict[str, Any] = {
    "os_pid": 4194304, "nice": -20, "age": 8640000.0, "cpu": 99999.9, "memory": 123_400_000_000,
    "contexts": 64, "queue": 256, "tokens": 99_999_999, "waiting": 99999.9, "switches": 999_999,
    "turnaround": 99999.9, "ttft": 999.9, "code": 137, "reason": "not reading",
}  # fmt: skip


def process(pid: int, name: str, parent: int = 0, **values: Any) -> ProcessInfo:
    return msgspec.structs.replace(row(pid, name), parent=parent, **values)


def printed(what: Any, monkeypatch: pytest.MonkeyPatch, width: int = 80) -> list[str]:
    """The lines that `show` draws in a terminal."""
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr(out, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    show(None, False, what)
    return out.getvalue().splitlines()


ROWS = [
    process(1048576 + pid, name, **BIG)
    for pid, name in enumerate(("summarize", "piece-12", "index-cards", "x"))
]


@pytest.mark.parametrize("shape", ["short", "all"])
def test_a_process_is_a_line_of_80_columns(
    shape: render.Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(render.processes(ROWS, shape), monkeypatch)
    assert len(lines) == 1 + len(ROWS)
    assert max(map(len, lines)) <= 80
    assert 6 <= len(lines[0].split()) <= 8
    for line, each in zip(lines[1:], ROWS, strict=True):
        assert line.split()[:2] == [str(each.pid), each.name]
        assert str(each.tokens) in line
        assert "\N{HORIZONTAL ELLIPSIS}" not in line


def test_a_long_name_is_folded_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a" * 64
    lines = printed(render.processes([process(7, name, **BIG)]), monkeypatch)
    assert max(map(len, lines)) <= 80
    assert sum(line.count("a") for line in lines[1:]) == 64 + "days".count("a")


def test_what_is_stored_and_what_is_granted_fit_into_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = Version(
        owner="/writer", path="notes/2026/plan.md", version=12, what="put", size=1_234_567,
        time=0.0, by="/writer", tags=["work"], media="", labels=[],
    )  # fmt: skip
    granted = GrantRow(
        id=12, giver="", pid=0, to="/planner", right="proc.control", on=["/worker"],
        args={"amount": Bounds(min=0, max=100), "to": "*@shop.example.org"}, expires=0.0,
    )  # fmt: skip
    for what in (render.versions([stored]), render.grants([granted])):
        assert max(map(len, printed(what, monkeypatch))) <= 80


TITLES = [
    "PID", "PARENT", "NAME", "KIND", "STATE", "NICE", "AGE", "CPU", "MEMORY", "CTX", "MAIL",
    "TOKENS", "WAITING", "TURNAROUND", "TTFT", "SWITCHES", "CODE", "REASON", "TOOL", "PRINCIPAL",
]  # fmt: skip


def test_all_of_it_is_a_row_where_the_terminal_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(render.processes(ROWS, "long"), monkeypatch, 400)
    assert len(lines) == 1 + len(ROWS)
    assert lines[0].split() == TITLES
    assert all("99999.90 s" in line and "/" in line for line in lines[1:])


@pytest.mark.parametrize("width", [80, 40])
def test_a_row_that_no_terminal_has_room_for_is_a_line_a_cell(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(render.processes(ROWS, "long"), monkeypatch, width)
    assert max(map(len, lines)) <= width
    titles = [line.split()[0] for line in lines if line[:1].isupper()]
    assert titles.count("PID") == titles.count("WAITING") == len(ROWS)
    assert set(titles) <= set(TITLES)
    assert sum("99999.90 s" in line for line in lines) >= len(ROWS)
    assert printed(render.processes([], "long"), monkeypatch, width) == ["none"]


def test_a_tree_has_each_below_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [process(1, "a"), process(2, "other"), process(3, "b", 1), process(4, "c", 3),
            process(5, "d", 1), process(6, "orphan", 99)]  # fmt: skip
    ordered = render.in_tree(rows)
    assert [each.name for each in ordered] == ["a", "b", "c", "d", "other", "orphan"]
    lines = printed(render.processes(ordered, tree=True), monkeypatch)
    assert [line[5:].partition("running")[0].rstrip() for line in lines[1:]] == [
        "a", "  b", "    c", "  d", "other", "orphan"
    ]  # fmt: skip


def test_a_loop_of_parents_ends() -> None:
    """No kernel has one; a table that is drawn must not hang for it."""
    assert render.in_tree([process(1, "a", 2), process(2, "b", 1)]) == []


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (3599, "60 min"), (3600, "1.0 h"),
     (86400, "1.0 days")],
)  # fmt: skip
def test_ages(seconds: float, said: str) -> None:
    assert render.age(seconds) == said


def test_a_status_fits_whatever_width_a_dumb_terminal_has(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(render.pairs([("policy", "rr, of several words " * 3)]), monkeypatch, 40)
    assert 2 <= len(lines) == len([line for line in lines if line.strip()])
    assert max(map(len, lines)) <= 40


def test_a_pipe_gets_lines_that_are_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    show(None, False, render.columns(["name", "text"], [["a", "word " * 400]]))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_colour_is_not_forced_into_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    show(None, False, render.columns(["name"], [["a"]]))
    assert capsys.readouterr().out == "NAME\na\n"


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert Screen(force_terminal=True).no_color
