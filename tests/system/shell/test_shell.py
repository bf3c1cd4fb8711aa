"""The interactive shell: its parser, its completion, its jobs, and its keys in a real terminal."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from commands import AIOS, LIMIT, environment, line_of, run, started
from conftest import eventually
from helpers import UNTIL_TOLD
from hypothesis import given
from hypothesis import strategies as st

from aios.agents import Aios, connect
from aios.shell import questions
from aios.shell.cli import cli, execute
from aios.shell.jobs import BackgroundJob, cut
from aios.shell.launch import System
from aios.shell.repl import BUILTINS, Line, Shell, parse, split_at_cursor
from aios.syscalls.errors import BadVersion

Open = Callable[[Path], Any]
# Sent once a prompt has the terminal in raw mode. "aios>" is no sign of that: the line just entered
# is drawn again with it, and a Ctrl-D typed before the next prompt is lost.
PROMPT = "\x1b[?2004h"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", Line([], False)),
        ("# all of it", Line([], False)),
        ("ps --all  # of them", Line(["ps", "--all"], False)),
        ("generate 'a b' &", Line(["generate", "a b"], True)),
        ("run x&\n", Line(["run", "x"], True)),
        ("generate 'salt & pepper'", Line(["generate", "salt & pepper"], False)),
        ("generate '&'", Line(["generate", "&"], False)),
        ("generate 'it&'", Line(["generate", "it&"], False)),
    ],
)
def test_parse(text: str, line: Line) -> None:
    assert parse(text) == line


def test_each_word_of_the_shell_has_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(tmp_path, cli, execute)
    for word, about in BUILTINS.items():
        assert shell.run(f"help {word}") == 0
        assert capsys.readouterr() == (f"{word}: {about}\n", "")


def test_the_prompt_outlives_a_kernel_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Semaphore(0)

    def connect(*_: object) -> Aios:
        asked.release()
        raise BadVersion("the caller speaks ABI version 1, this kernel 2")

    monkeypatch.setattr(questions, "connect", connect)
    monkeypatch.setattr(questions, "KERNEL_POLL_S", 0.01)
    notices = questions.Notices(tmp_path, print)
    try:
        assert asked.acquire(timeout=LIMIT) and asked.acquire(timeout=LIMIT), "it does not go on"
    finally:
        notices.end()


def test_an_open_quote_is_an_error() -> None:
    with pytest.raises(ValueError, match="quotation"):
        parse("generate 'what")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", ([], "")), ("ki", ([], "ki")), ("kill ", (["kill"], "")), ("kill 1", (["kill"], "1")),
     ("generate 'wh", ([], ""))],
)  # fmt: skip
def test_split_at_cursor(text: str, words: tuple[list[str], str]) -> None:
    assert split_at_cursor(text) == words


@given(st.text("ab \n", max_size=60), st.integers(1, 12))
def test_cut_keeps_every_word_and_the_width(text: str, width: int) -> None:
    lines, rest = cut(text, width)
    assert "".join([*lines, rest]).replace(" ", "") == text.replace("\n", "").replace(" ", "")
    assert all(len(line) <= width and "\n" not in line for line in [*lines, rest])


# --- lines from stdin ------------------------------------------------------------------------


def test_lines_from_stdin(system: System) -> None:
    done = run(system.home, stdin="sched\n\n# a comment\ngenerate 'open\nnonsense\nps\n")
    assert done.stdout.startswith("rr, quantum 32 tokens\nPID  ")
    assert "No closing quotation" in done.stderr
    assert "No such command 'nonsense'" in done.stderr
    assert done.returncode == 0


def test_a_line_may_begin_as_in_the_examples(system: System) -> None:
    done = run(system.home, stdin="aios sched\naios\naios sched &\n")
    assert done.stdout.count("rr, quantum 32 tokens\n") == 2
    assert (done.returncode, done.stderr) == (0, "")


def test_the_last_line_gives_the_exit_code(system: System) -> None:
    assert run(system.home, stdin="logs 999999\n").returncode == 1
    assert run(system.home, stdin="logs 999999\nexit\nps\n").returncode == 1


def test_stdin_waits_for_its_jobs(system: System, program: Callable[[str], str]) -> None:
    done = run(system.home, stdin=f"run {program('print(task)')} 'in the back' &\njobs\n")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("[1] started: run ")
    assert "[1] in the back" in lines
    assert lines[-1].startswith("[1] done: run ")


def test_exit_ends_the_jobs(system: System, aios: Aios, program: Callable[[str], str]) -> None:
    with started(system.home, stdin=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        shell.stdin.write(f"run {program(UNTIL_TOLD)} &\n")
        shell.stdin.flush()
        assert line_of(shell).startswith("[1] started: run ")
        assert line_of(shell) == "[1] up\n"
        (row,) = aios.ps()
        said, _ = shell.communicate("exit\nps\n", timeout=LIMIT)
        assert said.splitlines()[-1].startswith("[1] exit code 130: run ")
        assert shell.returncode == 0
    assert aios.wait(row.pid).reason == "signal TERM"


def test_a_job_that_a_signal_ended_has_the_code_of_a_shell(system: System) -> None:
    said: list[str] = []
    job = BackgroundJob(1, system.home, ["events", "policy"], said.append)
    job.process.kill()
    assert job.wait() == 137
    assert said == ["[1] exit code 137: events policy"]


# --- in a terminal ---------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[Open]:
    """A shell in a terminal of its own, at its prompt."""
    opened = []

    def start(home: Path) -> Any:
        env = environment(home) | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
        shell = pexpect.spawn(
            AIOS[0], AIOS[1:], env=env, timeout=LIMIT, encoding="utf-8", dimensions=(40, 120)
        )
        opened.append(shell)
        shell.expect_exact(PROMPT)
        return shell

    yield start
    for shell in opened:
        shell.close(force=True)


def leave(shell: Any) -> int:
    """Ctrl-D at the prompt; the exit code."""
    shell.sendeof()
    shell.expect(pexpect.EOF)
    shell.close()
    return int(shell.exitstatus)


def test_a_dead_kernel_leaves_the_prompt(tmp_path: Path, terminal: Open) -> None:
    shell = terminal(tmp_path)
    shell.sendline("ps")
    shell.expect_exact("aios: no kernel answers at ")
    shell.expect_exact("hint: start one with `aios start --detach`")
    shell.expect_exact(PROMPT)
    shell.sendline("help ps")
    shell.expect_exact("List the agents that are alive.")
    shell.expect_exact(PROMPT)
    assert leave(shell) == 0


def test_without_a_home_to_write_to_it_says_what_to_set(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("")
    shell = pexpect.spawn(
        AIOS[0], AIOS[1:], env=environment(home / "below"), timeout=LIMIT, encoding="utf-8"
    )
    shell.expect_exact("file/below cannot be used as a home: Not a directory")
    shell.expect_exact("hint: set AIOS_HOME")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 78


def test_live_pids_are_completed(
    system: System, aios: Aios, program: Callable[[str], str], terminal: Open
) -> None:
    path = program(UNTIL_TOLD)
    first = aios.spawn(path, name="alpha")
    second = aios.spawn(path, name="beta")
    shell = terminal(system.home)
    shell.send("kill \t")
    shell.expect("alpha")
    shell.expect("beta")
    shell.sendcontrol("c")
    shell.expect_exact(PROMPT)
    aios.kill(first)
    aios.wait(first)
    eventually(lambda: [row.pid for row in aios.ps()] == [second])
    shell.send("kill \t")
    shell.expect(rf"(?<![\[;\d]){second}(?!\d)")  # not in an escape sequence
    shell.send("\r")
    assert aios.wait(second).code == 143
    shell.expect_exact(PROMPT)
    assert leave(shell) == 0


def test_commands_are_completed_and_remembered(system: System, terminal: Open) -> None:
    shell = terminal(system.home)
    shell.send("sche\t")
    shell.expect("sche.*d")
    shell.send("\r")
    shell.expect_exact("rr, quantum 32 tokens")
    shell.expect_exact(PROMPT)
    assert leave(shell) == 0
    shell = terminal(system.home)
    shell.send("\x1b[A\r")
    shell.expect_exact("rr, quantum 32 tokens")
    shell.expect_exact(PROMPT)
    assert leave(shell) == 0
    assert "+sched\n" in (system.home / "shell_history").read_text()


def test_a_job_streams_above_the_prompt(
    system: System, aios: Aios, program: Callable[[str], str], terminal: Open
) -> None:
    shell = terminal(system.home)
    path = program("print('up')\nfor _ in range(2):\n    print(aios.recv().body)")
    shell.sendline(f"run {path} --name talker &")
    shell.expect_exact("[1] up")
    shell.send("sch")
    shell.expect_exact("sch")
    aios.send("talker", "heard meanwhile")
    shell.expect_exact("[1] heard meanwhile")
    shell.send("ed\r")
    shell.expect_exact("rr, quantum 32 tokens")
    shell.expect_exact(PROMPT)
    shell.sendline("jobs")
    shell.expect_exact("[1] running: run ")
    shell.expect_exact(PROMPT)
    shell.sendline("fg 1")
    aios.send("talker", "the end")
    shell.expect_exact("[1] the end")
    shell.expect_exact("[1] done: run ")
    shell.expect_exact(PROMPT)
    shell.sendline("jobs")
    shell.expect_exact("[1] ended with 0")
    shell.expect_exact(PROMPT)
    assert leave(shell) == 0


def test_ctrl_c(talker: System, terminal: Open) -> None:
    """The embedded model takes seconds for so many tokens."""
    shell = terminal(talker.home)
    shell.sendcontrol("c")
    shell.expect_exact(PROMPT)
    shell.sendline("generate 'Once upon a time' --raw --max-tokens 900")
    with connect(talker.home) as aios:
        eventually(lambda: aios.status().running == 1)
        shell.sendcontrol("c")
        shell.sendline("sched")
        shell.expect_exact("rr, quantum 32 tokens")
        assert aios.status().running == 0
    shell.expect_exact(PROMPT)
    assert leave(shell) == 0


def test_ctrl_c_ends_a_job_in_the_foreground(
    system: System, aios: Aios, program: Callable[[str], str], terminal: Open
) -> None:
    shell = terminal(system.home)
    shell.sendline(f"run {program(UNTIL_TOLD)} &")
    shell.expect_exact("[1] up")
    (row,) = aios.ps()
    shell.sendline("fg 1")
    shell.expect_exact("[1] in the foreground: run ")
    shell.sendcontrol("c")
    shell.expect_exact("[1] exit code 130")
    assert aios.wait(row.pid).reason == "signal TERM"
    shell.expect_exact(PROMPT)
    shell.sendline("fg 2")
    shell.expect_exact("aios: no such job")
    shell.expect_exact(PROMPT)
    assert leave(shell) == 1
