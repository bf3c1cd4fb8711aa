"""Commands whose streams are closed, full, read no more, or no text."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import AIOS, LIMIT, environment

from aios.shell.cli import execute
from aios.shell.launch import System
from aios.shell.output import open_streams

Program = Callable[[str], str]


def closed(system: System, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"{shlex.join(AIOS)} {line}"], env=environment(system.home), text=True,
        capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=LIMIT,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_like_an_empty_one(how: str, system: System, program: Program) -> None:
    path = program("print('said', sys.stdin.read())\nreturn 'result'")
    for line in ("status", f"run {path}", "generate hi --max-tokens 2", ""):
        done = closed(system, f"{line} {how}")
        assert (done.returncode, done.stderr) == (0, "")
        assert bool(done.stdout) == (">&-" not in how.split() and line != "")


def test_a_pipe_that_is_read_no_more_ends_quietly(system: System) -> None:
    done = closed(system, "logs kernel | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("line", ["status", "ps --json", "--help", "generate hi --max-tokens 2"])
def test_a_full_disk_is_told(line: str, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    done = closed(system, f"{line} > /dev/full")
    assert done.returncode == 1
    assert "the output: No space left on device" in done.stderr
    assert done.stderr.endswith("}\n" if "--json" in line else "hint: make room on its disk\n")


def test_errors_that_cannot_be_written_leave_the_exit_code(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert closed(system, "ps --nonsense 2> /dev/full").returncode == 1


@pytest.mark.parametrize("line", ["generate -", "send 1", ""])
def test_input_that_is_no_text_is_told(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = tmp_path / "stdin"
    stdin.write_bytes(b"status\n\xff\n")
    with stdin.open(encoding="ascii", errors="surrogateescape") as given:  # as in the locale C
        monkeypatch.setattr(sys, "stdin", given)
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        open_streams()
        assert execute(["--home", str(tmp_path), *line.split()]) == 78
    assert capsys.readouterr().err == "aios: stdin is no text in UTF-8\n"


def test_a_folder_that_is_gone_is_told(
    system: System, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    with contextlib.chdir(tmp_path / "gone"):
        (tmp_path / "gone").rmdir()
        assert execute(["--home", str(system.home), "run", "chat", "hi"]) == 78
    assert capsys.readouterr().err == "aios: this folder: No such file or directory\n"
