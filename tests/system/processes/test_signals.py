"""Signals to agents, and an end that takes all with it: children, strays, what it held."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from conftest import core_stopped, eventually
from helpers import end, row, running

from aios.agents import Aios
from aios.shell.launch import System
from aios.syscalls.errors import ProcessGone

Program = Callable[[str], str]
IDLE = "aios.recv()"

# --- families ----------------------------------------------------------------------------------

FAMILY = """
import subprocess
subprocess.Popen(["setsid", "sleep", "1001"])
subprocess.Popen(["sh", "-c", "sleep 1002 & setsid sh -c 'setsid sleep 1003 & sleep 1004'"])
if task:
    aios.spawn(task)
aios.recv()
"""


def sleepers(os_pid: int) -> list[psutil.Process]:
    """The four that FAMILY leaves below it."""

    def found() -> list[psutil.Process]:
        below = psutil.Process(os_pid).children(recursive=True)
        return [process for process in below if process.name() == "sleep"]

    eventually(lambda: len(found()) >= 4)
    return found()


@pytest.mark.parametrize("how", ["TERM", "KILL", "exit"])
def test_with_a_parent_its_whole_family_ends(
    aios: Aios, system: System, program: Program, how: str
) -> None:
    init = psutil.Process(system.process.pid)
    before = init.children()  # kernel and core, and the index if it runs
    path = program(FAMILY)
    parent = aios.spawn(path, path)
    child = eventually(lambda: [row for row in aios.ps() if row.parent == parent])[0]
    strays = [
        process for pid in (parent, child.pid) for process in sleepers(running(aios, pid).os_pid)
    ]
    if how == "exit":
        aios.send(parent, "end")
    else:
        aios.kill(parent, how)  # type: ignore[arg-type]
    assert aios.wait(parent, timeout=60).pid == parent
    assert psutil.wait_procs(strays, timeout=60)[1] == []
    eventually(lambda: not aios.ps())
    eventually(lambda: init.children() == before)  # init reaps those it adopted


def test_a_daemon_of_an_agent_outlives_the_death_of_others(aios: Aios, program: Program) -> None:
    path = program("import subprocess\nsubprocess.run(['sh', '-c', 'sleep 1005 &'])\naios.recv()")
    pid = aios.spawn(path)
    wanted = {"name": "sleep", "ppid": running(aios, pid).os_pid}  # not the shell before it
    daemon = eventually(
        lambda: [p for p in psutil.process_iter(["name", "ppid"]) if p.info == wanted]
    )[0]
    aios.wait(aios.spawn(program("return 1")), timeout=20)
    assert daemon.is_running()
    end(aios, pid)
    daemon.wait(timeout=60)


def test_what_an_agent_held_is_freed_with_it(talking: Aios, program: Program) -> None:
    aios = talking
    path = program(
        "for _ in range(3):\n    aios.open('You are terse.')\n"
        "aios.start('msg.recv', sender=task)\naios.start('kernel.events')\n"
        "for piece in aios.generate('Count to a thousand.', max_tokens=900, ignore_eos=True):\n"
        "    print(piece)"
    )
    pid = aios.spawn(path, 2**30)
    aios.send(pid, "never read")
    assert aios.log(pid, wait=30).data
    assert aios.status().contexts == 4
    assert row(aios, pid).queue == 1
    os.kill(row(aios, pid).os_pid, signal.SIGKILL)
    begin = time.monotonic()
    assert aios.wait(pid, timeout=60).reason == "signal KILL"
    assert time.monotonic() - begin < 1
    status = aios.status()
    assert (status.contexts, status.running, status.ready, status.agents) == (0, 0, 0, 0)
    assert aios.check() == []


# --- signals -----------------------------------------------------------------------------------

LONG: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True, "temperature": 0.9, "seed": 5}
WRITER = f"return aios.generate('Tell a story.', **{LONG!r}, digest=True).result().digest"


def generated(aios: Aios) -> int:
    return aios.stats().steps


@pytest.mark.parametrize("by", ["call", "os"])
def test_a_stopped_agents_generation_stops_and_goes_on_unchanged(
    aios: Aios, system: System, program: Program, by: str
) -> None:
    def send(name: str) -> None:
        if by == "call":
            aios.kill(pid, name)  # type: ignore[arg-type]
        else:
            os.kill(row(aios, pid).os_pid, signal.Signals[f"SIG{name}"])

    alone = aios.generate("Tell a story.", digest=True, **LONG).result()
    pid = aios.spawn(program(WRITER))
    eventually(lambda: row(aios, pid).tokens > 60)
    with core_stopped(system):
        send("STOP")
        eventually(lambda: row(aios, pid).state == "stopped")
    eventually(lambda: aios.status().ready == 1)
    tokens, steps = row(aios, pid).tokens, generated(aios)
    assert tokens < alone.usage.context
    assert aios.generate("Hi", max_tokens=5, ignore_eos=True).result().usage.completion == 5
    assert (row(aios, pid).tokens, generated(aios)) == (tokens, steps + 4)
    send("CONT")
    assert aios.wait(pid, timeout=60).result == alone.digest


def test_a_signal_reaches_who_is_still_being_born(aios: Aios, program: Program) -> None:
    pid = aios.wait(aios.spawn(program("return 1"))).pid + 1
    spawned = aios.start("proc.spawn", program=program(IDLE))
    aios.start("proc.kill", pid=pid, signal="KILL").wait()
    assert spawned.wait(20)["pid"] == pid
    assert aios.wait(pid, timeout=60).reason == "signal KILL"


def test_an_agent_may_catch_term_and_not_kill(aios: Aios, program: Program) -> None:
    path = program(
        "signal.signal(signal.SIGTERM, lambda *_: print('no'))\nprint('up')\n"
        "while True:\n    time.sleep(0.01)"
    )
    pid = aios.spawn(path)
    assert aios.log(pid, wait=20).data == b"up\n"
    aios.kill(pid, "TERM")
    assert aios.log(pid, offset=3, wait=20).data == b"no\n"
    aios.kill(pid, "KILL")
    assert aios.wait(pid, timeout=60).code == 137
    with pytest.raises(ProcessGone):
        aios.kill(pid)


def test_a_stopped_agent_can_be_killed(aios: Aios, program: Program) -> None:
    pid = aios.spawn(program(IDLE))
    running(aios, pid)
    aios.kill(pid, "STOP")
    eventually(lambda: row(aios, pid).state == "stopped")
    aios.kill(pid, "KILL")
    assert aios.wait(pid, timeout=60).reason == "signal KILL"
