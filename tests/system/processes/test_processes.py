"""Agents as processes: birth, identity, waiting, and what is told of their end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest
from conftest import Boot, eventually
from helpers import row, script

from aios.agents import Aios, connect
from aios.agents.sdk.declared import declared_name
from aios.shell.launch import System
from aios.syscalls.errors import NoProgram, NotFound, TimedOut

Program = Callable[[str], str]
IDLE = "aios.recv()"


def agents(aios: Aios) -> set[int]:
    return {row.pid for row in aios.ps(all=True) if row.kind == "agent"}


# --- birth, end, and what is told of it --------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "reason", "result"),
    [
        ("return {'n': 1}", 0, "exit", {"n": 1}),
        ("sys.exit(7)", 7, "exit", None),
        ("os._exit(9)", 9, "exit", None),
        ("raise KeyError('x')", 1, "exit", {"error": "KeyError: 'x'"}),
        ("aios.exit(5, 'early'); time.sleep(60)", 5, "signal KILL", "early"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "signal SEGV", None),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "signal KILL", None),
        ("return object()", 1, "exit", None),
    ],
)
def test_an_end_has_a_code_a_reason_and_a_result(
    aios: Aios, program: Program, body: str, code: int, reason: str, result: Any
) -> None:
    exited = aios.wait(aios.spawn(program(body)), timeout=30)
    assert (exited.code, exited.reason) == (code, reason)
    if result is not None:
        assert exited.result == result


@pytest.mark.parametrize(
    ("body", "code", "result"),
    [
        ("async def run(self, task):\n        await asyncio.sleep(0)\n        return task", 0, "x"),
        ("async def run(self, task):\n        raise KeyError(task)", 1, {"error": "KeyError: 'x'"}),
        ("async def run(self, task):\n        sys.exit(7)", 7, None),
        (
            "def run(self, task):\n        print('it runs')\n        yield 1", 1,
            {"error": "TypeError: `run` yields, and so has not begun: let it return its result"},
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", ['name = "boss"', 'name: ClassVar[str] = "boss"', ""])
def test_an_agent_is_listed_by_its_class_and_may_be_async(
    aios: Aios, tmp_path: Path, body: str, code: int, result: Any, named: str
) -> None:
    path = tmp_path / "work.py"
    path.write_text(
        "import asyncio, sys\nfrom typing import ClassVar\nfrom aios.agents import Agent\n\n\n"
        f"class Boss(Agent):\n    {named or 'x = 1'}\n\n    {body}\n"
    )
    exited = aios.wait(aios.spawn(str(path), "x"), timeout=30)
    assert (exited.name, exited.code, exited.result) == ("boss" if named else "work", code, result)
    assert "it runs" not in aios.log(exited.pid).data.decode()
    assert aios.wait(aios.spawn(str(path), name="other"), timeout=30).name == "other"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("class A(Agent):\n    name = 'a'", "a"),
        ("class A(Agent):\n    name = 'a'\nclass B(Agent):\n    name = 'b'", None),
        ("class A:\n    name = 'a'", None),
        ("class P(Struct):\n    name: str = 'p'\nclass A(agents.Agent):\n    x = 1", None),
        ("class P(Struct):\n    name: str = 'p'\nclass A(agents.Agent):\n    name = 'a'", "a"),
        ("class A(Base):\n    name = 'a'", "a"),
        ("class A(Agent):\n    name = f()", None),
        ("class A(", None),
        ("[" * 100_000, None),
        ("\0", None),
    ],
)
def test_the_name_that_a_file_declares(text: str, name: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(text)
    assert declared_name(str(path)) == name
    assert declared_name(str(tmp_path / "none.py")) is None
    assert declared_name("/bin/sh") is None


def test_the_welcome_and_the_table_tell_the_same(aios: Aios, program: Program) -> None:
    path = program(
        "me = aios.whoami()\nreturn [me.pid, me.name, me.nice, me.os_pid, task, me.kind]"
    )
    pid = aios.spawn(path, {"t": [1]}, name="worker", nice=3)
    exited = aios.wait(pid, timeout=30)
    assert exited.name == "worker"
    assert exited.result == [pid, "worker", 3, row(aios, pid).os_pid, {"t": [1]}, "agent"]
    dead = row(aios, pid)
    assert (dead.state, dead.code, dead.reason) == ("zombie", 0, "exit")


def test_an_executable_gets_its_arguments_and_streams(aios: Aios, tmp_path: Path) -> None:
    path = script(tmp_path, '#!/bin/sh\necho "$1-$2"; pwd; echo bad >&2; exit 3\n')
    pid = aios.spawn(path, args=["a b", "c"], cwd="/")
    assert aios.wait(pid, timeout=30).code == 3
    assert aios.log(pid).data == b"a b-c\n/\nbad\n"


def test_a_log_is_followed_to_its_end(aios: Aios, program: Program) -> None:
    pid = aios.spawn(program("print('one')\naios.recv()\nprint('two')"))
    first = aios.log(pid, wait=60)
    assert (first.data, first.ended) == (b"one\n", False)
    assert aios.log(pid, offset=first.offset).data == b""
    aios.send(pid, "go on")
    second = aios.log(pid, offset=first.offset, wait=60)
    assert second.data == b"two\n"
    assert aios.wait(pid, timeout=60).code == 0
    assert aios.log(pid, offset=second.offset, wait=60).ended
    assert aios.log(pid, offset=-4).data == b"two\n"
    assert aios.log(pid, offset=2**60).data == b""


def test_nobody_changes_holds_or_loses_what_was_printed(aios: Aios, program: Program) -> None:
    """Its log is not the agent's: a lease on it would have had the kernel wait, for one."""
    path = program(
        dedent("""
        import fcntl
        def refused(step):
            try:
                step()
            except OSError:
                return True
        print("kept", flush=True)
        assert refused(lambda: fcntl.fcntl(1, fcntl.F_SETLEASE, fcntl.F_WRLCK))
        assert refused(lambda: os.ftruncate(1, 0))
        assert refused(lambda: os.lseek(1, 0, os.SEEK_SET))
        print("x" * 60_000)
        print("the last word")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL) if task == "killed" else os._exit(3)
        """)
    )
    for how, reason in (("killed", "signal KILL"), ("exits", "exit")):
        pid = aios.spawn(path, how)
        assert aios.wait(pid, timeout=30).reason == reason
        assert aios.log(pid).data.startswith(b"kept\nxxx")
        last = aios.log(pid, offset=-15)
        assert (last.data, last.ended) == (b"\nthe last word\n", True)


@pytest.mark.parametrize("name", ["nobody", "no/path.py", "/nowhere/a.py", "/", "/" + "n" * 300])
def test_what_cannot_be_started_is_refused_and_leaves_no_row(aios: Aios, name: str) -> None:
    before = agents(aios)
    with pytest.raises(NoProgram) as caught:
        aios.spawn(name)
    assert caught.value.message
    assert agents(aios) == before


def test_init_without_descriptors_refuses_and_goes_on(
    aios: Aios, system: System, program: Program
) -> None:
    init = psutil.Process(system.process.pid)
    limits = init.rlimit(psutil.RLIMIT_NOFILE)
    init.rlimit(psutil.RLIMIT_NOFILE, (init.num_fds(), limits[1]))
    try:
        with pytest.raises(NoProgram, match="Too many open files"):
            aios.spawn(program(IDLE))
    finally:
        init.rlimit(psutil.RLIMIT_NOFILE, limits)
    assert aios.wait(aios.spawn(program("return 1")), timeout=30).result == 1


def test_a_burst_of_starts_leaves_init_the_descriptors_that_it_needs(
    boot: Boot, program: Program
) -> None:
    """Data that an agent hands over comes later than its start."""
    system = boot(slots=1)
    init = psutil.Process(system.process.pid)
    init.rlimit(psutil.RLIMIT_NOFILE, (100, init.rlimit(psutil.RLIMIT_NOFILE)[1]))
    path = program(IDLE)
    refused = []
    with connect(system.home) as aios:
        for start in [aios.start("proc.spawn", program=path) for _ in range(40)]:
            try:
                start.wait()
            except NoProgram as error:
                refused.append(error)
        assert 0 < len(refused) < 40
        eventually(lambda: all(row.state == "running" for row in aios.ps()))
        assert len(aios.ps()) == 40 - len(refused)
        assert aios.check() == []


def test_what_agents_returned_takes_as_much_memory_as_it_has_bytes(
    boot: Boot, program: Program
) -> None:
    """As lists in lists each would take 4 MB."""
    path = program("return [[]] * 60_000")
    with connect(boot(slots=1).home) as aios:
        kernel = psutil.Process(aios.status().os_pid)
        before = kernel.memory_info().rss
        for _ in range(30):
            assert len(aios.wait(aios.spawn(path), timeout=60).result) == 60_000
        assert kernel.memory_info().rss - before < 48 << 20


def test_who_never_says_hello_is_ended(boot: Boot) -> None:
    with connect(boot(slots=1, hello=0.3).home) as aios:
        exited = aios.wait(aios.spawn("/bin/sleep", args=["60"]), timeout=20)
        assert (exited.code, exited.reason) == (143, "no hello")
        assert aios.check() == []


# --- waiting -----------------------------------------------------------------------------------


def test_waiting_for_any_child_hands_out_each_once(aios: Aios, program: Program) -> None:
    child = program("return task")
    parent = program(
        "pids = [aios.spawn(task, n) for n in range(3)]\n"
        "first = aios.wait(pids[1])\n"
        "rest = sorted(aios.wait().result for _ in range(2))\n"
        "try:\n    aios.wait()\n"
        "except AiosError as error:\n    return [first.result, rest, error.code]"
    )
    assert aios.wait(aios.spawn(parent, child), timeout=60).result == [1, [0, 2], "process.gone"]


def test_a_persons_wait_takes_nothing_from_the_parent(aios: Aios, program: Program) -> None:
    child = program("aios.recv()\nreturn 'mine'")
    parent = aios.spawn(program("aios.spawn(task)\nreturn aios.wait().result"), child)
    pid = eventually(lambda: [row.pid for row in aios.ps() if row.parent == parent])[0]
    waiting = aios.start("proc.wait", pid=pid)
    aios.send(pid, "go")
    assert waiting.wait(20)["result"] == "mine"
    assert aios.wait(parent, timeout=20).result == "mine"


def test_two_waits_for_any_child_get_two_children(aios: Aios, program: Program) -> None:
    parent = program(
        "for n in range(2):\n    aios.spawn(task, n)\n"
        "calls = [aios.start('proc.wait') for _ in range(3)]\n"
        "found = [call.wait()['result'] for call in calls[:2]]\n"
        "try:\n    calls[2].wait()\n"
        "except AiosError as error:\n    return [sorted(found), error.code]"
    )
    child = program("return task")
    assert aios.wait(aios.spawn(parent, child), timeout=60).result == [[0, 1], "process.gone"]


def test_a_wait_ends_in_time_and_may_be_repeated(aios: Aios, program: Program) -> None:
    pid = aios.spawn(program("aios.recv()\nreturn 4"))
    with pytest.raises(TimedOut):
        aios.wait(pid, timeout=0.05)
    aios.send(pid, None)
    assert [aios.wait(pid, timeout=20).result for _ in range(2)] == [4, 4]
    with pytest.raises(NotFound):
        aios.wait(2**30)
