"""The shell says what an agent was refused, and what helps."""

from __future__ import annotations

import re
import shlex
from collections import deque
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from commands import run

from aios.shell.launch import System
from aios.shell.refused import LINES, Refused, line

HOME = Path("/home/ann/.local/state/aios")


@pytest.mark.parametrize(
    ("call", "about", "needs", "said"),
    [
        ("openat", "/etc/shadow", "read", "reading /etc/shadow (let it: --read /etc/shadow)"),
        ("openat", "/etc/hosts by /tmp/x", "write",
            "writing /etc/hosts (let it: --write /etc/hosts)"),
        ("mkdir", "/usr/new/folder", "write", "writing /usr/new/folder (let it: --write /usr)"),
        ("openat", f"{HOME}/keys/kernel.key", "read",
            f"reading {HOME}/keys/kernel.key (no option lets an agent into the system's home)"),
        ("openat", "/home/ann/a b", "write",
            "writing /home/ann/a b (let it: make that first, then --write '/home/ann/a b')"),
        ("openat", "/proc/17/maps by /proc/self/maps", "read",
            "reading /proc/17/maps (no option lets an agent read of processes)"),
        ("mkdir", "/tmp/no/folder", "write",
            "writing /tmp/no/folder (let it: make that first, then --write /tmp/no/folder)"),
        ("connect", "port 443", "ports", "connecting to port 443 (let it: --port 443)"),
        ("socket", "2 1 0", "ports", "using the network (let it: --port, for each port)"),
        ("clone", "17", "processes", "starting a process (let it: --processes)"),
        ("ptrace", "", "", "ptrace (no option lets an agent do that)"),
        ("openat", "/x\x1b[2J\n", "read", "reading /x\\x1b[2J\\n (there is no such file)"),
        ("openat", f"/{'n' * 300}", "write",
            f"writing /{'n' * 300} (let it: --write /{'n' * 300})"),  # it cannot be looked for
    ],
)  # fmt: skip
def test_each_refusal_names_the_option_that_lets_it(
    call: str, about: str, needs: str, said: str
) -> None:
    assert line(call, about, needs, HOME) == said


def test_what_python_looks_for_to_show_code_without_a_file_is_not_said() -> None:
    pieces = deque(
        {"what": "refused", "pid": 7, "detail": {"call": "openat", "object": path, "needs": "read"}}
        for path in ("/own/<string>", "/own/<answer of a model>", "/own/<a>/b", "/own/<unknown>")
    )
    refused = Refused(Mock(pieces=pieces))
    refused.pid = 7
    refused.look()
    assert [*refused.said(HOME)] == ["aios: refused: reading /own/<a>/b (there is no such file)"]


def test_what_was_refused_to_a_run_is_said_and_works_with_the_option(
    system: System, program: Callable[[str], str], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    path = program("""
with open("out.txt", "w") as file:
    file.write(str(task))
return 7
""")
    done = run(system.home, "run", path, "here", cwd=own)
    assert done.returncode == 1
    found = re.search(r"refused: writing (.*) \(let it: (.*)\)", done.stderr)
    assert found is not None
    assert found[1] == f"{own}/out.txt"
    done = run(system.home, "run", *shlex.split(found[2]), path, "here", cwd=own)
    assert (done.stdout.strip(), done.stderr) == ("7", "")
    assert (own / "out.txt").read_text() == "here"


def test_of_many_refusals_the_first_are_said(system: System, program: Callable[[str], str]) -> None:
    path = program("""
for number in range(20):
    try:
        open(f"/root-{number}")
    except OSError:
        pass
""")
    done = run(system.home, "run", path)
    assert done.returncode == 0
    assert done.stderr.count("refused: reading /root-") == LINES
    assert "14 more; `aios audit search --decision denied` has all" in done.stderr


def test_a_program_beside_a_home_tries_nothing_that_it_may_not(
    system: System, program: Callable[[str], str]
) -> None:
    """As in the folder of a user who has the system below it: it reads the program alone."""
    path = system.home.parent / "beside.py"
    path.write_text(Path(program("return 7")).read_text())
    done = run(system.home, "run", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


NO_RUN = (
    "aios.syscalls.errors.NoProgram: PATH: A has no `run` that takes a task"
    " (write `def run(self, task):`)\n"
)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("class A(Agent):\n    def run(self, task):\n        return 1 / 0\n",
            'Traceback (most recent call last):\n  File "PATH", line 4, in run\n'),
        ("class A(Agent):\n    def run(self, task)\n", '  File "PATH", line 3\n'),
        ("print('up')\n", "up\naios.syscalls.errors.NoProgram: PATH defines 0 agents"),
        ("class A(Agent):\n    def run(self):\n        return 1\n", NO_RUN),
        ("class A(Agent):\n    pass\n", NO_RUN),
        ("class A(Agent):\n    def __init__(self):\n        self.x = 1\n"
            "    def run(self, task):\n        return 1\n",
            "aios.syscalls.errors.NoProgram: PATH: A has an `__init__` that takes no connection"
            " (leave it out, or write"),
        ("class A(Agent):\n    def run(self, task):\n        self.aios.generate(5)\n",
            'Traceback (most recent call last):\n  File "PATH", line 4, in run\n'
            "    self.aios.generate(5)\naios.syscalls.errors.BadInput: a prompt is no int (give "),
        ("class A(Agent):\n    def run(self, task):\n        self.aios.generate(b'hi')\n",
            'Traceback (most recent call last):\n  File "PATH", line 4, in run\n'
            "    self.aios.generate(b'hi')\naios.syscalls.errors.BadInput: a prompt is no bytes "),
        ("class A(Agent):\n    def run(self, task):\n        self.aios.send('nobody', 1)\n",
            'Traceback (most recent call last):\n  File "PATH", line 4, in run\n'
            "    self.aios.send('nobody', 1)\naios.syscalls.errors.NotFound: "),
    ],
)  # fmt: skip
def test_an_error_is_told_from_the_program_s_own_line_on(
    text: str, first: str, system: System, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(f"from aios.agents import Agent\n{text}")
    done = run(system.home, "run", str(path))
    assert done.returncode == 1
    assert done.stdout.startswith(first.replace("PATH", str(path)))
    assert "importlib" not in done.stdout
