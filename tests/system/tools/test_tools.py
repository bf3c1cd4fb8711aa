"""The tool manager: real workers, with tools that fail in every way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Boot, eventually, run_system
from helpers import call, visiting
from places import SUPPORT

from aios.agents import Aios, connect
from aios.kernel.init.outputs import HOLE_BYTES, MAX_LOG_BYTES, READ_BYTES
from aios.kernel.tools.toolbox import Box
from aios.shell.launch import System
from aios.syscalls.errors import (
    AiosError,
    Cancelled,
    Denied,
    LimitReached,
    Malformed,
    NotFound,
    TimedOut,
    ToolArguments,
    ToolCrashed,
    ToolFailed,
    ToolTimeout,
)

FRESH = """
import os
from aios.agents.tools import tool
CALLS = []

@tool(name="fresh")
def fresh() -> list[int]:
    CALLS.append(os.getpid())
    return CALLS
"""
LAB = str(SUPPORT / "toolbox.py")


@pytest.fixture(scope="module")
def lab(homes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    place = str(tmp_path_factory.getbasetemp())
    fresh = tmp_path_factory.mktemp("fresh") / "fresh.py"
    fresh.write_text(FRESH)
    settings: dict[str, Any] = {
        "slots": 1, "ctx": 256, "grace": 0.5,
        "walls": {"read": [place], "write": [place]},
        "tools": {
            "lab": {"program": LAB, "idle": 300},
            "fresh": {"program": str(fresh), "fresh": True},
            "none": {"program": "/nowhere/tools.py"},
        },
    }  # fmt: skip
    yield from run_system(homes / "lab", settings)


@pytest.fixture
def aios(lab: System) -> Iterator[Aios]:
    with visiting(lab) as aios:
        yield aios
        eventually(lambda: [row.name for row in aios.ps() if row.name != "lab"] == [])


def test_a_call_gets_what_the_function_returns(aios: Aios) -> None:
    assert call(aios, "lab.add", a=2, b=3) == 5
    assert call(aios, "lab.add", a=2) == 3
    assert [row.name for row in aios.ps()] == ["lab"]  # one worker, warm


def test_tools_are_listed_with_their_schemas(aios: Aios) -> None:
    listed = aios.toolboxes()
    specs = {spec.name: spec for spec in listed.tools}
    assert specs["lab.add"].schema["required"] == ["a"]
    assert specs["lab.change"].effect
    boxes = {box.name: box for box in listed.boxes}
    assert "/nowhere/tools.py" in boxes["none"].error
    assert boxes["lab"].error == ""


@pytest.mark.parametrize(
    ("name", "args", "error", "said"),
    [
        ("lab.add", {}, ToolArguments, "missing required field `a`"),
        ("lab.add", {"a": "2"}, ToolArguments, "Expected `int`"),
        ("lab.add", {"a": 2, "c": 3}, ToolArguments, "unknown field `c`"),
        ("lab.fail", {"text": "why not"}, ToolFailed, "ValueError: why not"),
        ("lab.leave", {"code": 3}, ToolFailed, "SystemExit: 3"),
        ("lab.crash", {}, ToolCrashed, "signal SEGV"),
        ("lab.hang", {}, ToolTimeout, "was not done within 0.5 s"),
        ("lab.odd", {}, ToolFailed, "cannot be used"),
        ("lab.half", {}, ToolFailed, "OSError"),
        ("lab.none", {}, NotFound, "lab.add"),
        ("nothing", {}, NotFound, "aios tool list"),
        ("none.at_all", {}, ToolFailed, "/nowhere/tools.py"),
    ],
)
def test_what_goes_wrong_has_one_clear_end(
    aios: Aios, name: str, args: dict[str, Any], error: type[AiosError], said: str
) -> None:
    with pytest.raises(error, match=said.replace("(", r"\(")):
        aios.call_tool(name, args).result(30)
    assert call(aios, "lab.poisoned") == 0  # whoever comes next meets nothing of it
    assert call(aios, "lab.add", a=1) == 2


def test_a_fresh_box_has_a_new_process_for_each_call(aios: Aios) -> None:
    first, second = call(aios, "fresh"), call(aios, "fresh")
    assert len(first) == len(second) == 1
    assert first != second


def test_ended_workers_leave_nothing_on_the_disk(boot: Boot, tmp_path: Path) -> None:
    (tmp_path / "fresh.py").write_text(FRESH)
    box = {"program": str(tmp_path / "fresh.py"), "fresh": True}
    system = boot(slots=1, ctx=256, dead=2, tools={"fresh": box})
    with connect(system.home) as aios:
        for _ in range(5):
            call(aios, "fresh")
        eventually(lambda: not aios.ps() and not list((system.home / "agents").iterdir()))
        eventually(lambda: len(list((system.home / "log").glob("agent-*.log"))) == 2)
        last = max(row.pid for row in aios.ps(all=True) if row.kind == "agent")
        (
            system.home / "agents" / str(last)
        ).mkdir()  # as if the kernel had died before it deleted it
        os.kill(aios.status().os_pid, signal.SIGKILL)
        eventually(lambda: not list((system.home / "agents").iterdir()))


def test_calls_run_at_once_each_in_a_process_of_its_own(aios: Aios, tmp_path: Path) -> None:
    go = tmp_path / "go"
    calls = [aios.call_tool("lab.wait_for", {"path": str(go)}) for _ in range(4)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 4)
    more = aios.call_tool("lab.add", {"a": 1})  # all four workers of this caller are busy
    with pytest.raises(TimedOut):
        more.result(0.2)
    go.touch()
    assert len({each.result(30).value for each in calls}) == 4
    assert more.result(30).value == 2


def test_a_lock_and_a_limit_hold_for_all_callers(lab: System, aios: Aios, tmp_path: Path) -> None:
    with connect(lab.home, "other") as other:
        alone = [
            each.call_tool("lab.alone", {"path": str(tmp_path / "lock")})
            for each in (aios, other) * 4
        ]
        assert [each.result(30).value for each in alone] == ["alone"] * 8
        folder = tmp_path / "two"
        folder.mkdir()
        two = [each.call_tool("lab.two", {"folder": str(folder)}) for each in (aios, other) * 4]
        assert max(each.result(30).value for each in two) <= 2


def test_progress_is_heard(aios: Aios) -> None:
    counting = aios.call_tool("lab.count", {"to": 3})
    assert [(p.done, p.total, p.message) for p in counting] == [
        (0, 3, "at 0"), (1, 3, "at 1"), (2, 3, "at 2"),
    ]  # fmt: skip
    assert counting.result().value == 3


def test_progress_that_nobody_looks_at_does_no_harm(aios: Aios) -> None:
    kernel = psutil.Process(aios.status().os_pid)
    before = kernel.memory_info().rss
    counting = aios.call_tool("lab.count", {"to": 20_000})
    with connect(aios.connection.home) as other:  # while this one does not read
        eventually(lambda: other.stats().calls.get("tool.progress", 0) >= 20_000)
    assert counting.result(60).value == 20_000
    assert len(list(counting)) < 500
    assert kernel.memory_info().rss - before < 16 << 20


def test_the_kernel_keeps_nothing_of_calls_that_are_over(aios: Aios) -> None:
    kernel = psutil.Process(aios.status().os_pid)
    long = "x" * 60_000

    def fails(times: int) -> int:
        for _ in range(times):
            with pytest.raises(ToolFailed):
                call(aios, "lab.fail", text=long)
        return kernel.memory_info().rss

    before = fails(100)
    assert fails(700) - before < 16 << 20


def test_cancelled_a_tool_ends_with_its_process(aios: Aios, tmp_path: Path) -> None:
    waiting = aios.call_tool("lab.wait_for", {"path": str(tmp_path / "never")})
    (own,) = eventually(lambda: list(tmp_path.iterdir()))
    os_pid = int(own.suffix[1:])
    assert waiting.cancel()
    with pytest.raises(Cancelled):
        waiting.result(30)
    eventually(lambda: not psutil.pid_exists(os_pid))
    assert not waiting.cancel()


def test_its_own_time_limit_is_the_callers_to_shorten(aios: Aios, tmp_path: Path) -> None:
    waiting = aios.call_tool("lab.wait_for", {"path": str(tmp_path / "never")}, timeout=0.3)
    with pytest.raises(ToolTimeout, match=r"within 0.3 s"):
        waiting.result(30)
    with pytest.raises(ToolTimeout, match=r"within 0.5 s"):
        aios.call_tool("lab.hang", timeout=20).result(30)


def test_a_worker_that_is_killed_costs_its_job_and_no_other(aios: Aios, tmp_path: Path) -> None:
    go = tmp_path / "go"
    calls = [aios.call_tool("lab.wait_for", {"path": str(go)}) for _ in range(2)]
    first, second = eventually(lambda: len(f := list(tmp_path.iterdir())) == 2 and f)
    os.kill(int(first.suffix[1:]), signal.SIGKILL)
    go.touch()
    ends: list[Any] = []
    for each in calls:
        try:
            ends.append(each.result(30).value)
        except ToolCrashed as error:
            ends.append(error.message)
    assert int(second.suffix[1:]) in ends
    assert any("signal KILL" in str(end) for end in ends)


def test_a_long_result_is_in_the_callers_storage(aios: Aios) -> None:
    result = aios.call_tool("lab.long", {"size": 1_000_000}).result(30)
    assert (result.size, result.value) == (1_000_000, "x" * 2000)
    assert aios.sto_get(result.stored, owner=result.owner) == b"x" * 1_000_000
    aios.sto_purge(result.stored)


@pytest.mark.parametrize("where", ["out", "err"])
def test_what_a_tool_prints_is_bounded(aios: Aios, where: str) -> None:
    assert call(aios, "lab.chatter", megabytes=200, where=where) == "said it"
    (worker,) = aios.ps()
    assert len(aios.log(worker.pid, offset=1 << 20).data) < 100
    assert call(aios, "lab.chatter", megabytes=1, where=where) == "said it"


def test_a_log_keeps_the_last_and_fails_nobody_who_prints(aios: Aios, lab: System) -> None:
    assert call(aios, "lab.chatter", megabytes=200, where="log") == "said it"
    (worker,) = aios.ps()
    log = lab.home / "log" / f"agent-{worker.pid}.log"
    assert log.stat().st_blocks * 512 <= MAX_LOG_BYTES + HOLE_BYTES + READ_BYTES
    assert call(aios, "lab.chatter", megabytes=2) == "said it"
    assert [row.name for row in aios.ps()] == ["lab"]  # the same, whose log it is


def test_a_toolbox_in_the_users_home_does_not_show_the_home(tmp_path: Path) -> None:
    reach = Box(program=str(Path.home() / "lab.py")).spawn("lab", tmp_path).reach
    assert reach is not None
    assert reach.read == [str(Path.home() / "lab.py")]


def test_only_workers_serve(aios: Aios) -> None:
    for name, args in (
        ("tool.serve", {}), ("tool.offer", {"tools": []}),
        ("tool.done", {"id": 1}), ("tool.progress", {"id": 1, "done": 0.0}),
    ):  # fmt: skip
        with pytest.raises(Denied):
            aios.start(name, **args).wait()


# --- agents ---------------------------------------------------------------------------------------


def test_an_agent_calls_tools_and_its_workers_end_with_it(
    aios: Aios, program: Any, tmp_path: Path
) -> None:
    body = (
        "call = aios.call_tool('lab.wait_for', {'path': task[1]})\n"
        "aios.send(task[0], aios.call_tool('lab.add', {'a': 1}).result().value)\n"
        "aios.recv()"
    )
    manifest = {"allow": ["tool", "msg"]}
    pid = aios.spawn(program(body), [aios.pid, str(tmp_path / "go")], manifest=manifest)
    assert aios.recv(timeout=30).body == 2
    (own,) = eventually(lambda: list(tmp_path.glob("go.*")))
    assert [row.parent for row in aios.ps() if row.name == "lab"] == [pid, pid]
    aios.kill(pid, "KILL")
    eventually(lambda: not psutil.pid_exists(int(own.suffix[1:])))


def test_an_agent_may_call_what_its_manifest_says(aios: Aios, program: Any) -> None:
    body = (
        "found = [spec.name for spec in aios.tools()]\n"
        "ok = aios.call_tool('lab.add', {'a': 5}).result().value\n"
        "try:\n"
        "    aios.call_tool('lab.add', {'a': 50}).result()\n"
        "except AiosError as error:\n"
        "    return [found, ok, error.code]"
    )
    rule = {"right": "tool.call", "on": ["lab.add"], "args": {"a": {"max": 9}}}
    manifest = {"allow": ["tool.list", rule]}
    pid = aios.spawn(program(body), manifest=manifest)
    assert aios.wait(pid, timeout=30).result == [["lab.add"], 6, "access.denied"]


def test_what_a_tool_says_taints_its_caller(aios: Aios, program: Any) -> None:
    body = (
        "aios.call_tool('lab.add', {'a': 5}).result()\nreturn aios.check_access('mem.read').tainted"
    )
    manifest = {"allow": ["tool", "acc"]}
    pid = aios.spawn(program(body), manifest=manifest)
    assert aios.wait(pid, timeout=30).result == ["tool:lab.add"]


def test_a_worker_may_no_more_than_its_toolbox_whatever_its_caller_may(
    aios: Aios, program: Any
) -> None:
    body = (
        "aios.send(task, aios.status().boot)\n"
        "aios.recv()\n"
        "try:\n"
        "    aios.call_tool('lab.ask', {'call': 'kernel.status', 'args': {}}).result()\n"
        "except AiosError as error:\n"
        "    return error.message"
    )
    aios.set_group("trusted", {"members": ["/scout"], "allow": ["*"]})
    try:
        pid = aios.spawn(program(body), aios.pid, name="scout", manifest={"allow": ["tool"]})
        assert aios.recv(timeout=30).body == aios.status().boot
        granted = aios.grant("/scout", "kernel.read")
        aios.send(pid, "go on")
        assert "/scout may not kernel.status" in aios.wait(pid, timeout=30).result
        aios.revoke(granted)
    finally:
        aios.set_group("trusted", None)


def test_what_runs_in_a_tool_cannot_change_what_others_are_offered(aios: Aios) -> None:
    before = aios.tools()
    with pytest.raises(ToolFailed, match="says before it does"):
        call(aios, "lab.ask", call="tool.offer", args={"tools": [], "anew": True})
    assert aios.tools() == before


def test_who_may_have_no_children_may_call_tools(aios: Aios, program: Any) -> None:
    body = "return aios.call_tool('lab.add', {'a': 1}).result().value"
    pid = aios.spawn(program(body), manifest={"allow": ["tool"]}, limits={"children": 0})
    assert aios.wait(pid, timeout=30).result == 2


def test_mail_to_an_agent_is_not_a_workers_that_has_its_name(aios: Aios, program: Any) -> None:
    call(aios, "lab.add", a=1)
    pid = aios.spawn(program("return aios.recv().body"), name="lab")
    aios.send("lab", "hello")
    assert aios.wait(pid, timeout=30).result == "hello"


def test_progress_taints_who_reads_it(aios: Aios, program: Any) -> None:
    body = (
        "said = next(iter(aios.call_tool('lab.tell'))).message\n"
        "return [said, aios.check_access('mem.read').tainted]"
    )
    pid = aios.spawn(program(body), manifest={"allow": ["tool", "acc"]})
    assert aios.wait(pid, timeout=30).result == ["read me", ["tool:lab.tell"]]


def test_a_long_result_that_cannot_be_stored_is_not_called_undone(aios: Aios, program: Any) -> None:
    body = (
        "try:\n"
        "    aios.call_tool('lab.long', {'size': 100_000}).result()\n"
        "except AiosError as error:\n"
        "    return error.message"
    )
    pid = aios.spawn(program(body), manifest={"allow": ["tool"]})
    said = aios.wait(pid, timeout=30).result
    assert "was done" in said
    assert "may not sto" in said


def test_sandbox_grants_that_are_too_much_are_refused(
    aios: Aios, program: Any, tmp_path: Path
) -> None:
    """Or init could not read it, nor a kernel in the journal."""
    calls = program("return aios.call_tool('lab.add', {'a': 1}).result().value")
    paths = [f"{tmp_path}/{number}" for number in range(256)]
    pid = aios.spawn(calls, manifest={"allow": ["tool"]}, reach={"read": paths[:254]})
    assert "its sandbox grants are too much" in aios.wait(pid, timeout=30).result["error"]
    for read in (paths, [f"/{'x' * 4000}{number}" for number in range(13)]):
        with pytest.raises(LimitReached, match="its sandbox grants are too much"):
            aios.spawn(calls, reach={"read": read})
    for reach in ({"read": ["/a\0b"]}, {"write": ["/\0"]}):
        with pytest.raises(Malformed, match="matching regex"):
            aios.spawn(calls, reach=reach)
    body = (
        "child = aios.spawn(task, reach={'read': [os.path.dirname(task)] * 256})\n"
        "return aios.wait(child, timeout=30).code"
    )
    pid = aios.spawn(program(body), program("return 1"))
    assert aios.wait(pid, timeout=30).result == 0
