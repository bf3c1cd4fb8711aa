"""`aios chat` and `aios send`: an agent is talked to by messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from commands import AIOS, LIMIT, answer, environment, run
from conftest import eventually
from helpers import end, running

from aios.agents import Aios
from aios.shell.launch import System

Program = Callable[[str], str]
ECHO = """
while True:
    mail = aios.recv()
    aios.send(mail.sender, {'heard': mail.body})
"""


@pytest.fixture
def echo(aios: Aios, program: Program) -> Iterator[int]:
    pid = aios.spawn(program(ECHO), name="echo")
    running(aios, pid)
    yield pid
    end(aios, pid)


def test_an_agent_is_sent_a_message(system: System, aios: Aios, program: Program) -> None:
    pid = aios.spawn(program("return [aios.recv().body for _ in range(3)]"), name="ear")
    running(aios, pid)
    assert run(system.home, "send", "ear", "two words").returncode == 0
    assert answer(system.home, "send", str(pid), "--body-json", '{"a": [1]}') == {"to": pid}
    assert run(system.home, "send", "ear", stdin="a line\n").returncode == 0
    assert aios.wait(pid).result == ["two words", {"a": [1]}, "a line\n"]


def test_send_waits_for_an_answer(system: System, echo: int) -> None:
    done = run(system.home, "send", "echo", "hello", "--wait", "30")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"heard": "hello"})
    mail = answer(system.home, "send", "echo", "again", "--wait", "30")
    assert (mail["sender"], mail["body"]) == (echo, {"heard": "again"})


@pytest.mark.parametrize("command", [["send", "--wait", "30"], ["chat"]])
def test_where_to_look_when_who_is_asked_ends(
    system: System, aios: Aios, program: Program, command: list[str]
) -> None:
    pid = aios.spawn(program("aios.recv(); raise ValueError('why')"), name="ends")
    running(aios, pid)
    done = run(system.home, command[0], str(pid), *command[1:], stdin="a line\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"`aios logs {pid}`" in done.stderr
    assert "ValueError: why" in run(system.home, "logs", str(pid)).stdout


def test_what_cannot_be_sent_is_said(system: System, aios: Aios, program: Program) -> None:
    for args, code, says in (
        (["send", "nobody", "x"], 1, "no agent is named 'nobody'"),
        (["send", "1", "x", "--body-json", "1"], 2, "one of them"),
        (["send", "1", "--body-json", "{"], 2, "--body-json"),
        (["chat", "nobody"], 1, "no agent is named 'nobody'"),
        (["chat", "999999"], 1, "no live process 999999"),
    ):
        done = run(system.home, *args, stdin="a line\n")
        assert (done.returncode, done.stdout) == (code, "")
        assert says in done.stderr
    pid = aios.spawn(program("aios.recv()"))
    silent = run(system.home, "send", str(pid), "x", "--wait", "30")
    assert silent.returncode == 1
    assert "has ended: no message will come from it" in silent.stderr


def test_lines_from_stdin_are_a_talk(system: System, echo: int) -> None:
    done = run(system.home, "chat", "echo", stdin="one\n\ntwo\n")
    assert done.returncode == 0
    assert re.findall(r'"heard": "(\w+)"', done.stdout) == ["one", "two"]


def test_without_a_name_the_agent_chat_comes_and_goes(system: System, aios: Aios) -> None:
    done = run(system.home, "chat", stdin="What is the capital of France?\n")
    assert done.returncode == 0
    assert done.stdout.strip()
    assert aios.ps() == []


def test_the_agent_chat_outlives_who_does_not_wait(system: System, aios: Aios) -> None:
    pid = aios.spawn("chat", name="friend")
    running(aios, pid)
    assert run(system.home, "send", "friend", "Hello").returncode == 0
    done = run(system.home, "send", "friend", "What is the capital of France?", "--wait", "60")
    assert (done.returncode, bool(done.stdout.strip())) == (0, True)
    assert f"`aios chat {pid}`" in aios.log(pid).data.decode()
    end(aios, pid)


def test_a_talk_in_a_terminal(system: System, aios: Aios, echo: int) -> None:
    env = environment(system.home) | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
    talk = pexpect.spawn(
        AIOS[0], [*AIOS[1:], "chat", "echo"], env=env, timeout=LIMIT, encoding="utf-8",
        dimensions=(24, 80),
    )  # fmt: skip
    talk.expect_exact(f"a line goes to echo, process {echo}; Ctrl-D ends the talk")
    talk.expect_exact("\x1b[?2004h")
    talk.sendline("how are you")
    talk.expect_exact('"heard": "how are you"')
    talk.expect_exact("\x1b[?2004h")
    talk.sendeof()
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 0


def test_ctrl_c_ends_a_talk_and_the_agent_that_came_for_it(
    system: System, aios: Aios, tmp_path: Path
) -> None:
    env = environment(system.home) | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
    talk = pexpect.spawn(AIOS[0], [*AIOS[1:], "chat"], env=env, timeout=LIMIT, encoding="utf-8")
    talk.expect_exact("a line goes to chat, process ")
    talk.expect_exact("\x1b[?2004h")
    talk.sendcontrol("c")
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 130
    eventually(lambda: aios.ps() == [])
