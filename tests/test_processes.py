"""Agents as processes: birth, identity, signals, limits, families, and what an end frees."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Boot, eventually
from raw import Raw

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import (
    BadToken,
    Denied,
    LimitReached,
    NoProgram,
    NotFound,
    ProcessGone,
    TimedOut,
)
from aios.syscalls.table import ProcessInfo
from aios.syscalls.wire import ABI_VERSION

Program = Callable[[str], str]
IDLE = "aios.recv()"


def row(aios: Aios, pid: int) -> ProcessInfo:
    return next(row for row in aios.ps(all=True) if row.pid == pid)


def agents(aios: Aios) -> set[int]:
    return {row.pid for row in aios.ps(all=True) if row.kind == "agent"}


def running(aios: Aios, pid: int) -> ProcessInfo:
    """Its row, once it has said hello."""
    eventually(lambda: row(aios, pid).state == "running")
    return row(aios, pid)


def end(aios: Aios, pid: int) -> None:
    aios.kill(pid, "KILL")
    aios.wait(pid, timeout=10)


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "script"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


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


def test_the_welcome_and_the_table_tell_the_same(aios: Aios, program: Program) -> None:
    path = program("me = aios.whoami()\nreturn [me.pid, me.name, me.nice, me.os_pid, task, me.kind]")
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
    first = aios.log(pid, wait=20)
    assert (first.data, first.ended) == (b"one\n", False)
    assert aios.log(pid, offset=first.offset).data == b""
    aios.send(pid, "go on")
    second = aios.log(pid, offset=first.offset, wait=20)
    assert second.data == b"two\n"
    assert aios.wait(pid, timeout=20).code == 0
    assert aios.log(pid, offset=second.offset, wait=20).ended
    assert aios.log(pid, offset=-4).data == b"two\n"
    assert aios.log(pid, offset=2**60).data == b""


@pytest.mark.parametrize("name", ["nobody", "no/path.py", "/nowhere/agent.py", "/", "/" + "n" * 300])
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
        "try:\n    aios.wait()\nexcept AiosError as error:\n    return [first.result, rest, error.code]"
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
        "try:\n    calls[2].wait()\nexcept AiosError as error:\n    return [sorted(found), error.code]"
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
    assert aios.wait(parent, timeout=10).pid == parent
    assert psutil.wait_procs(strays, timeout=10)[1] == []
    eventually(lambda: not aios.ps())
    assert len(psutil.Process(system.process.pid).children()) == 2  # kernel and core


def test_a_daemon_of_an_agent_outlives_the_death_of_others(aios: Aios, program: Program) -> None:
    path = program("import subprocess\nsubprocess.run(['sh', '-c', 'sleep 1005 &'])\naios.recv()")
    pid = aios.spawn(path)
    daemon = eventually(lambda: psutil.Process(running(aios, pid).os_pid).children())[0]
    aios.wait(aios.spawn(program("return 1")), timeout=20)
    assert daemon.is_running()
    end(aios, pid)
    daemon.wait(timeout=5)


def test_what_an_agent_held_is_freed_with_it(aios: Aios, program: Program) -> None:
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
    assert aios.wait(pid, timeout=10).reason == "signal KILL"
    assert time.monotonic() - begin < 1
    status = aios.status()
    assert (status.contexts, status.running, status.ready, status.agents) == (0, 0, 0, 0)
    assert aios.check() == []


# --- signals -----------------------------------------------------------------------------------

LONG: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True, "temperature": 0.9, "seed": 5}
WRITER = f"return aios.generate('Tell a story.', **{LONG!r}, digest=True).result().digest"


def generated(aios: Aios) -> int:
    return aios.stats().steps


@pytest.mark.parametrize("by", ["call", "os"])
def test_a_stopped_agents_generation_stops_and_goes_on_unchanged(
    aios: Aios, program: Program, by: str
) -> None:
    def send(name: str) -> None:
        if by == "call":
            aios.kill(pid, name)  # type: ignore[arg-type]
        else:
            os.kill(row(aios, pid).os_pid, signal.Signals[f"SIG{name}"])

    alone = aios.generate("Tell a story.", digest=True, **LONG).result()
    pid = aios.spawn(program(WRITER))
    eventually(lambda: row(aios, pid).tokens > 60, 60)
    send("STOP")
    eventually(lambda: row(aios, pid).state == "stopped", 5)
    eventually(lambda: aios.status().ready == 1, 5)
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
    assert aios.wait(pid, timeout=10).reason == "signal KILL"


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
    assert aios.wait(pid, timeout=5).code == 137
    with pytest.raises(ProcessGone):
        aios.kill(pid)


def test_a_stopped_agent_can_be_killed(aios: Aios, program: Program) -> None:
    pid = aios.spawn(program(IDLE))
    running(aios, pid)
    aios.kill(pid, "STOP")
    eventually(lambda: row(aios, pid).state == "stopped")
    aios.kill(pid, "KILL")
    assert aios.wait(pid, timeout=5).reason == "signal KILL"


# --- limits ------------------------------------------------------------------------------------

TRY = "try:\n    {}\nexcept AiosError as error:\n    return error.code"


@pytest.mark.parametrize(
    ("limits", "act"),
    [
        ({"tokens": 40}, "aios.generate('Hi', max_tokens=200, ignore_eos=True).result()"),
        ({"tokens": 5}, "aios.open().append('a long text that is more than five tokens')"),
        ({"contexts": 2}, "[aios.open() for _ in range(3)]"),
        ({"contexts": 0}, "aios.generate('Hi', max_tokens=1).result()"),
        ({"children": 1}, "[aios.spawn(task) for _ in range(2)]"),
        ({"queue": 3}, "[aios.start('msg.recv') for _ in range(4)][-1].wait()"),
        ({"queue": 3}, "[aios.send(aios.pid, n) for n in range(4)]"),
    ],
)
def test_going_past_a_limit_is_a_typed_error_and_the_agent_goes_on(
    aios: Aios, program: Program, limits: dict[str, Any], act: str
) -> None:
    pid = aios.spawn(program(TRY.format(act)), program(IDLE), limits=limits)
    exited = aios.wait(pid, timeout=60)
    assert (exited.code, exited.result) == (0, "limit"), aios.log(pid).data


@pytest.mark.parametrize(
    ("limits", "act"),
    [
        ({"wall": 0.5}, "pass"),
        ({"memory": 150 << 20}, "hoard = [b'x' * (1 << 20) for _ in range(160)]"),
    ],
)
def test_past_its_wall_time_or_memory_an_agent_is_told_and_ended(
    aios: Aios, program: Program, limits: dict[str, Any], act: str
) -> None:
    body = (
        "signal.signal(signal.SIGTERM, lambda *_: print('TERM'))\n"
        f"call = aios.start('msg.recv')\n{act}\n"
        "try:\n    call.wait()\nexcept AiosError as error:\n    print(error.code)\ntime.sleep(60)"
    )
    pid = aios.spawn(program(body), limits=limits)
    exited = aios.wait(pid, timeout=30)
    assert (exited.code, exited.reason) == (137, f"limit {next(iter(limits))}")
    assert sorted(aios.log(pid).data.split()) == [b"TERM", b"limit"]


def test_a_full_mailbox_refuses_and_loses_nothing(aios: Aios, program: Program) -> None:
    pid = aios.spawn(program("time.sleep(1e6)"), limits={"queue": 2})
    aios.send(pid, 1)
    aios.send(pid, 2)
    with pytest.raises(LimitReached):
        aios.send(pid, 3)
    assert row(aios, pid).queue == 2
    end(aios, pid)


# --- rights and identity -----------------------------------------------------------------------

STRANGE = ["kill(task, 'KILL')", "log(task)", "nice(5, task)", "limits(task)", "wait(task)"]


@pytest.mark.parametrize("act", [*STRANGE, "stop()", "policy('fifo')", "nice(-1)", "policy()"])
def test_an_agent_is_denied_what_is_not_its_own(aios: Aios, program: Program, act: str) -> None:
    stranger = aios.spawn(program(IDLE))
    pid = aios.spawn(program(TRY.format(f"aios.{act}")), stranger, nice=2)
    assert aios.wait(pid, timeout=30).result == "access.denied", aios.log(pid).data
    assert row(aios, stranger).state in ("starting", "running")
    end(aios, stranger)


def test_an_agent_loosens_no_limit_of_its_own_or_its_children(aios: Aios, program: Program) -> None:
    path = program(
        "aios.limits(limits={'tokens': 50, 'contexts': None})\n"
        "child = aios.spawn(task, limits={'tokens': 90, 'wall': 5.0})\n"
        "aios.limits(child, {})\n"
        "return [[l.tokens, l.wall, l.contexts] for l in (aios.limits(), aios.limits(child))]"
    )
    pid = aios.spawn(path, program(IDLE), limits={"tokens": 60, "wall": 100.0, "contexts": 3})
    assert aios.wait(pid, timeout=30).result == [[50, 100.0, 3], [50, 100.0, 3]]


def test_an_agent_controls_what_it_started(aios: Aios, program: Program) -> None:
    path = program(
        "child = aios.spawn(task)\ndata = aios.log(child, wait=20).data\naios.nice(7, child)\n"
        "aios.kill(child, 'KILL')\nreturn [data.decode(), aios.wait(child).reason]"
    )
    pid = aios.spawn(path, program("print('up')\naios.recv()"))
    assert aios.wait(pid, timeout=30).result == ["up\n", "signal KILL"]


def test_a_token_is_nowhere_to_be_read_after_hello(aios: Aios, program: Program) -> None:
    pid = aios.spawn(program(IDLE))
    process = psutil.Process(running(aios, pid).os_pid)
    assert "AIOS_FD" not in process.environ()
    kinds = {os.readlink(fd).partition(":")[0] for fd in Path(f"/proc/{process.pid}/fd").iterdir()}
    assert "pipe" not in kinds
    end(aios, pid)


THIEF = """
import subprocess
token = open(3, "rb").read()
code = {raw!r}
ran = subprocess.run([sys.executable, "-c", code, token.hex()], capture_output=True, text=True)
print(ran.stdout, ran.stderr)
"""


def test_a_token_serves_its_process_alone_and_once(
    aios: Aios, system: System, tmp_path: Path
) -> None:
    """The agent hands its token to a child, which is refused; then uses it; then again."""
    code = f"""#!{os.sys.executable}
import subprocess, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from raw import Raw
token = bytes.fromhex(sys.argv[2]) if sys.argv[2:] else open(3, "rb").read()
def hello(**args):
    with Raw(Path({str(system.home)!r}), hello=False) as raw:
        kind, body = raw.final(raw.start("hello", version={ABI_VERSION}, **args))
        print(kind, body.get("code", "served"), flush=True)
if sys.argv[2:]:
    hello(token=token)
    hello()
else:
    hello(token=b"wrong" * 6)
    subprocess.run([sys.argv[0], "child", token.hex()])
    hello(token=token)
    hello(token=token)
"""
    pid = aios.spawn(script(tmp_path, code))
    assert aios.wait(pid, timeout=60).code == 0, aios.log(pid).data
    heard = aios.log(pid).data.decode().splitlines()
    refused = f"1 {BadToken.code}"
    assert heard == [refused, refused, f"1 {Denied.code}", "0 served", refused]


def test_an_agents_child_that_connects_is_no_client(
    aios: Aios, system: System, program: Program
) -> None:
    path = program(
        "import subprocess\n"
        "code = 'from aios.agents import connect; connect()'\n"
        "ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)\n"
        "return ran.stderr.splitlines()[-1]"
    )
    exited = aios.wait(aios.spawn(path), timeout=60)
    assert "Denied" in exited.result
    with Raw(system.home) as raw:
        assert raw.done("proc.whoami")["kind"] == "client"
