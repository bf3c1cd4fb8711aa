"""Small steps that many tests take."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import eventually, kill_agents

from aios.agents import Aios, Context, Generation, connect
from aios.shell.launch import System
from aios.syscalls.llm import Moved, Result
from aios.syscalls.proc import ProcessInfo

STORY = "Tell me a short story about a fox."
FACT = "My sister's parrot is called Zanzibar and it is nine years old."
UNTIL_TOLD = "print('up', flush=True)\nprint(aios.recv().body)"  # the body of an agent
WINDOW = 256  # of the systems whose windows are to be full
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 11, "ignore_eos": True}


def run(aios: Aios, prompt: Any = STORY, **options: Any) -> Result:
    return aios.generate(prompt, **{"max_tokens": 12, **options}).result()


def result_of(aios: Aios, program: str, task: Any = None, **options: Any) -> Any:
    """Run an agent; return its result."""
    pid = aios.spawn(program, task, **options)
    exited = aios.wait(pid, timeout=60)
    assert exited.code == 0, aios.log(pid).data.decode()
    return exited.result


def call(aios: Aios, name: str, /, **args: Any) -> Any:
    """Call a tool; return its value."""
    return aios.call_tool(name, args).result(60).value


def first_piece(generation: Generation) -> None:
    """Wait until it has begun to answer."""
    assert next(generation.pieces()).tokens


def row(aios: Aios, pid: int) -> ProcessInfo:
    return next(row for row in aios.ps(all=True) if row.pid == pid)


def running(aios: Aios, pid: int) -> ProcessInfo:
    """Its row, once it has said hello."""
    eventually(lambda: row(aios, pid).state == "running")
    return row(aios, pid)


def end(aios: Aios, pid: int) -> None:
    aios.kill(pid, "KILL")
    aios.wait(pid, timeout=60)


def end_agents(aios: Aios) -> None:
    """Leave nothing running, and the kernel whole."""
    kill_agents(aios)
    eventually(lambda: not aios.ps())
    assert aios.check() == []


def kill_kernel(aios: Aios) -> None:
    """Return when another has taken its place."""
    status = aios.status()
    os.kill(status.os_pid, signal.SIGKILL)
    assert aios.status().boot != status.boot


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "script"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def talk(context: Context, turns: int, **options: Any) -> list[Moved | None]:
    """Tell the fact, then talk about something else; what moved, by turn."""
    moved: list[Moved | None] = []
    for number in range(turns):
        line = FACT if number == 0 else f"Tell me one thing about the number {number}."
        answer = context.generate(line, max_tokens=16, ignore_eos=True, **options).result()
        assert answer.usage.context <= WINDOW
        assert answer.finish == "length"
        moved.append(answer.moved)
    return moved


def left_empty(aios: Aios) -> Iterator[Aios]:
    """A person's connection, with nothing stored before and nothing wrong afterwards."""
    yield aios
    assert aios.sto_verify().wait()["problems"] == []
    for holding in aios.sto_owners():
        for info in list(aios.sto_list(deleted=True, owner=holding.owner)):
            aios.sto_purge(info.path, info.owner)
        for grant in aios.sto_shares(holding.owner):
            if grant.owner == holding.owner:
                aios.sto_share(grant.prefix, grant.to, "none", owner=grant.owner)
    assert aios.sto_verify().wait()["chunks"] == 0


@contextlib.contextmanager
def visiting(system: System) -> Iterator[Aios]:
    """A person's connection, with which all ends that was started by it, workers of tools too."""
    with connect(system.home, "test") as aios:
        yield aios
        assert aios.check() == []
    with connect(system.home) as after:
        eventually(lambda: not after.ps())
