"""Agents that try to leave their sandbox, by every way in the tables of tests/probes.

Each attempt that the sandbox stops is tried in a system without one as well. There it succeeds, so
the sandbox is what stops it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
from conftest import eventually, left_of
from probes.attacks import TABLES
from sandbox_harness import ATTACKER, BOUNDS, PROBES, Place, got, kept, recorded

from aios.agents import connect
from aios.kernel.sandbox.cgroup import pids_mounts
from aios.kernel.sandbox.sandbox import SandboxPolicy, check
from aios.shell.launch import System
from aios.syscalls.errors import Denied

ON_X86 = platform.machine() == "x86_64"
IS_ROOT = os.getuid() == 0
# Only root may do these without a sandbox, or other users only to files of their own.
NEEDS_ROOT = set() if IS_ROOT else {
    "read by a device made", "/etc/shadow", "Python's library", "the SDK", "its program",
    "the system's settings", "read after chroot", "raw", "packet", "open_tree", "acct",
    "capabilities", "swapon", "mount", "fanotify", "unshare mounts", "pivot_root", "sethostname",
    "reboot", "fsopen", "mode of a device", "mode of stdin", "another owner", "another group",
}  # fmt: skip
# Folders that an agent is in: init cannot look at them unless it is root.
UNTOLD = set() if IS_ROOT else {
    "read after fchdir", "read by a symlink", "read through /proc/self/root",
}  # fmt: skip
# Attempts that each mechanism stops by itself, without any of the others.
ALONE: dict[str, set[str]] = {
    "none": set(),
    "Landlock": {
        "read by its path", "read with ..", "read by a symlink", "read by a hard link",
        "read through /proc/self/root", "read through init's root", "read by O_PATH and openat",
        "list a folder", "move a file in", "move a file out", "truncate", "create", "its program",
        "the journal", "a sibling's file", "a sibling's memory", "ptrace", "pidfd_getfd",
        "signal a sibling", "signal the kernel", "signal by pidfd", "TCP", "bind TCP",
        "an abstract socket", "bind a name",
    },
    "view": {
        "read by its path", "read through /proc/self/root", "read by O_PATH and openat",
        "list a folder", "move a file in", "truncate", "create", "change a mode", "change times",
        "change an owner", "change an attribute", "its program", "the journal",
        "a person's Unix socket", "core.sock",
    },
    "seccomp": {
        "change a mode", "change an owner", "change an attribute", "a sibling's memory",
        "write a sibling's memory", "ptrace", "pidfd_getfd", "kcmp", "a sibling's priority",
        "a sibling's processors", "a sibling's scheduling", "a sibling's limits", "TCP", "UDP",
        "raw", "netlink", "packet", "vsock", "datagrams", "raw datagrams", "bind a name",
        "bind an abstract name", "listen", "mount", "unshare users", "setns", "keyctl", "add_key",
        "bpf", "userfaultfd", "io_uring",
        "perf_event_open", "personality", "System V memory", "memfd_create", "a lease",
        "become dumpable", "outlive its parent", "a call that is not known", "signal a sibling",
        "signal a sibling's group", "signal the kernel", "signal init", "signal a person's process",
        "signal by pidfd", "signal a thread", "signal a thread by its number alone",
        "a queued signal",
    },
    "capabilities": {"read by a device made", "read after chroot", "mount", "raw", "packet"},
}  # fmt: skip


@pytest.fixture(scope="module")
def walled(homes: Path) -> Iterator[Place]:
    yield from kept(homes / "walled", {"all_walls": True})


@pytest.fixture(scope="module")
def bare(homes: Path) -> Iterator[Place]:
    yield from kept(homes / "bare", {"off": True})


@pytest.fixture(scope="module")
def granted(homes: Path) -> Iterator[Place]:
    """A system whose agents may start processes, and reach a port and two folders."""
    walls = {"all_walls": True, "processes": True, **BOUNDS}
    yield from kept(homes / "granted", walls, grant=True)


@pytest.mark.parametrize("table", ["files", "others", "sockets", "linux", "identity"])
def test_no_probe_gets_out(walled: Place, table: str) -> None:
    found = walled.attack(table)
    assert found
    assert got(found) == set(), found


@pytest.mark.parametrize("table", ["files", "others", "sockets", "linux", "identity"])
def test_no_probe_gets_out_of_a_tool(walled: Place, table: str) -> None:
    found = walled.attack_by_tool(table)
    assert found
    assert got(found) == set(), found


@pytest.mark.parametrize("table", ["files", "others", "sockets", "linux"])
def test_without_walls_the_probes_get_out(bare: Place, table: str) -> None:
    found = bare.attack(table)
    missing = {
        name
        for name, what in found.items()
        if what.startswith(("refused: [Errno 38]", "refused: [Errno 97]"))
    }  # not in this Linux
    assert found.keys() - got(found) - missing <= NEEDS_ROOT, found


@pytest.mark.parametrize("wall", ALONE)
def test_each_wall_stops_what_is_its_own_to_stop(walled: Place, tmp_path: Path, wall: str) -> None:
    command = [sys.executable, str(PROBES / "alone.py"), wall, str(tmp_path)]
    done = subprocess.run(
        [*command, json.dumps(walled.targets)], capture_output=True, text=True, check=True
    )
    refused = set(json.loads(done.stdout))
    assert ALONE[wall] - refused == set()
    by_walls = ALONE["Landlock"] | ALONE["view"]
    assert wall != "none" or not IS_ROOT or not refused & by_walls


# These look at their own process alone: nothing is asked for that could be refused.
LOOKS = {"a setuid program", "be dumpable", "the environment of the person's shell"}


@pytest.mark.parametrize("table", ["files", "others", "sockets", "linux", "identity"])
def test_each_probe_is_recorded(walled: Place, table: str) -> None:
    untold = {
        probe
        for probe in TABLES[table].keys() - LOOKS
        if not recorded(walled, partial(walled.attack, table, probe))
    }
    assert untold <= UNTOLD


def test_each_call_is_told_once_and_what_is_within_reach_never(walled: Place) -> None:
    assert recorded(walled, partial(walled.attack, "files", "none of them")) == []
    told = recorded(walled, partial(walled.attack, "others"))
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("script", ["exec cat /etc/shadow", "cat /etc/shadow; true"])
def test_what_another_program_tries_is_recorded(
    granted: Place, tmp_path: Path, script: str
) -> None:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    reach = {"read": [str(tmp_path)]}

    def run() -> None:
        granted.aios.wait(granted.aios.spawn(str(path), reach=reach), timeout=20)

    assert "process.refused call=openat object=/etc/shadow needs=read" in recorded(granted, run)


def test_a_program_names_its_own_streams(granted: Place, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\necho out > /dev/stdout\necho err > /dev/stderr\n")
    path.chmod(0o755)
    pid = granted.aios.spawn(str(path), reach={"read": [str(tmp_path)]})
    assert granted.aios.wait(pid, timeout=20).code == 0
    assert granted.aios.log(pid).data == b"out\nerr\n"


def _without_its_own(said: str) -> str:
    """Remove an agent's pids, and its own folder in the path to a file."""
    return re.sub(r"(os_pid=|agents/)\d+", r"\1", said).partition(" by ")[0]


@pytest.mark.parametrize("table", ["files", "others", "sockets", "linux", "identity"])
def test_what_is_tried_in_a_tool_is_recorded_as_of_an_agent(walled: Place, table: str) -> None:
    by_agent = recorded(walled, partial(walled.attack, table))
    with connect(Path(walled.targets["home"])) as aios:  # whose worker has told of nothing yet
        fresh = replace(walled, aios=aios)
        by_tool = recorded(walled, partial(fresh.attack_by_tool, table))
    # Equal records become one within a window of the log; where one begins meanwhile, they are two.
    tool, agent = (dict.fromkeys(said) for said in (by_tool, by_agent))
    assert [*map(_without_its_own, tool)] == [*map(_without_its_own, agent)]


SERVICE = """
import os
from aios.kernel.init.child import exec_service
file = os.memfd_create("environment")
os.write(file, b'{"PERSONS_TOKEN": "not for agents"}')
exec_service(["/usr/bin/env"], file)()
"""


def test_a_service_has_the_environment_that_agents_do_not_have() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVICE], capture_output=True, text=True, check=True
    )
    assert "PERSONS_TOKEN=not for agents" in done.stdout


def test_modes_owners_and_times_are_changed_of_its_own_files_alone(walled: Place) -> None:
    assert walled.attack("own") == {
        "mode of its own": f"got {0o750}", "owner of its own": "got True",
        "times of its own": "got 2",
    }  # fmt: skip
    found = walled.attack("modes")
    assert got(found) == set(), found


def test_without_walls_modes_are_changed_of_others(bare: Place) -> None:
    found = bare.attack("modes")
    assert found.keys() - got(found) <= NEEDS_ROOT, found


# --- what the kernel can be made to hold ---------------------------------------------------------

TOLD = {
    "endless": "a message without an end", "unread": "os_pid=", "long_frame": "a frame of",
    "crowd": "too many connections without a hello",
}  # fmt: skip


@pytest.mark.parametrize(
    ("flood", "count"), [("endless", 2000), ("unread", 50), ("crowd", 2000), ("long_frame", 0)]
)
def test_the_kernel_holds_no_more_than_it_wants_to(walled: Place, flood: str, count: int) -> None:
    kernel = psutil.Process(walled.targets["kernel"])
    before = kernel.memory_info().rss
    told = recorded(walled, partial(walled.attack, "floods", flood, count=count))
    assert any(TOLD[flood] in said for said in told)
    assert kernel.memory_info().rss - before < 32 << 20
    assert walled.aios.status().os_pid == kernel.pid
    socket_path = f"{walled.targets['home']}/run/kernel.sock"
    eventually(lambda: Path("/proc/net/unix").read_text().count(socket_path) < 100)


# --- bombs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bomb", "most"),
    [
        ("fork_bomb", BOUNDS["tasks"]), ("thread_bomb", BOUNDS["tasks"]),
        ("memory_bomb", BOUNDS["memory"]), ("descriptor_bomb", BOUNDS["files"]),
        ("file_bomb", BOUNDS["file_bytes"]),
    ],
)  # fmt: skip
def test_a_bomb_ends_at_a_number(granted: Place, bomb: str, most: int) -> None:
    came: dict[str, str] = {}
    told = recorded(granted, lambda: came.update(granted.attack("bombs", bomb)))
    assert most / 4 < int(came[bomb].removeprefix("got ")) <= most
    of_tasks = most == BOUNDS["tasks"]
    assert any("at its limit" in said for said in told) == (of_tasks and IS_ROOT)


@pytest.mark.parametrize("bomb", ["memory_bomb", "shared_memory_bomb"])
def test_who_starts_no_process_has_the_memory_of_one(walled: Place, bomb: str) -> None:
    most = SandboxPolicy().memory
    came = int(walled.attack("bombs", bomb)[bomb].removeprefix("got "))
    assert most / 2 < came <= most


def test_descriptors_under_way_keep_no_other_agent_from_starting(walled: Place) -> None:
    task = {"table": "bombs", "only": "descriptors_under_way", "targets": walled.targets}
    bomber = walled.aios.spawn(ATTACKER, task)
    walled.aios.send(bomber, "how many?")
    assert walled.aios.recv(timeout=20).body > 256
    assert got(walled.attack("files", "none of them")) == set()
    walled.aios.send(bomber, "enough")
    assert walled.aios.wait(bomber, timeout=20).code == 0


def test_processes_are_started_where_that_is_granted(walled: Place, granted: Place) -> None:
    assert granted.attack("bombs", "a_child") == {"a_child": "got 0"}
    assert got(walled.attack("bombs", "a_child")) == set()


def test_who_speaks_to_linux_in_another_architecture_is_ended(walled: Place) -> None:
    task = {"table": "bombs", "only": "other_architecture", "targets": walled.targets}
    exited = walled.aios.wait(walled.aios.spawn(ATTACKER, task), timeout=20)
    assert exited.reason == ("signal SYS" if ON_X86 else "signal ILL")


DETACHING = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        signal.pause()
    os._exit(0)
aios.recv()
"""


def test_what_an_agent_detached_ends_with_init(
    boot: Callable[..., System], program: Callable[[str], str]
) -> None:
    system = boot(slots=1, ctx=256, walls={"processes": True})
    with connect(system.home) as aios:
        pid = aios.spawn(program(DETACHING))
        detached = psutil.Process(int(aios.log(pid, wait=20).data))
        counted = aios.status().walls["tasks"].startswith("cgroup")
        system.process.kill()
        if not counted:  # then it stays: docs/walls.md
            detached.kill()
        detached.wait(timeout=60)
    eventually(lambda: left_of(system.home) == [])
    of_home = f"aios-{sha256(str(system.home).encode()).hexdigest()[:16]}-*"
    assert [group for place in pids_mounts() for group in place.glob(of_home)] == []
    for path in system.home.rglob("*.sock"):  # nobody was left to do it
        path.unlink()


NAMES_OTHERS = """
said = set()
os.symlink(task["there"][0], "link")
for path in [*task["there"], *task["missing"], os.path.abspath("link")]:
    for options in ({"program": path}, {"program": task["own"], "cwd": path}):
        try:
            aios.spawn(options.pop("program"), **options)
        except AiosError as error:
            said.add((error.code, error.message.replace(path, "PATH")))
        else:
            said.add((path, "started"))
end = aios.wait(aios.spawn("/bin/true", cwd=os.getcwd()))
return sorted(said), end.code
"""


def test_of_what_it_does_not_reach_spawn_says_the_same(
    walled: Place, program: Callable[[str], str], tmp_path: Path
) -> None:
    secret, script, folder = tmp_path / "secret", tmp_path / "script", tmp_path / "folder"
    secret.write_text("what is in there")
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    folder.mkdir()
    there = [secret, script, folder, f"/proc/{walled.targets['kernel']}/environ"]
    missing = [tmp_path / "missing", folder / "missing.py", "/proc/self/fd/999"]
    inside = tmp_path / "inside"
    inside.mkdir()
    own = inside / "agent.py"
    Path(program(NAMES_OTHERS)).rename(own)
    task = {"there": [*map(str, there)], "missing": [*map(str, missing)], "own": str(own)}
    exited = walled.aios.wait(walled.aios.spawn(str(own), task), timeout=30)
    assert exited.result == [
        [["process.no_program", "there is no PATH that the agent can_read"]], 0
    ], exited  # fmt: skip


# --- levels and grants ---------------------------------------------------------------------------


def test_what_is_granted_is_let_through_and_nothing_else(granted: Place) -> None:
    assert got(granted.attack("sockets")) == {"TCP", "TCP over IPv6"}
    other = granted.targets["other"]
    told = recorded(granted, partial(granted.attack, "sockets", "TCP", tcp=other))
    assert told == [f'process.refused call=connect object="port {other}" needs=ports']
    folder = granted.targets["folder"]
    lent = f"{folder}/lent/file"
    reads = {name for name in granted.attack("files") if name.startswith("read ")}
    by_others = {name for name in reads if "init" in name or "sibling" in name}
    tricks = {"read by a hard link", "read by a device made", "read after chroot"}
    assert got(granted.attack("files", secret=lent, loose=lent)) == reads - by_others - tricks
    given = f"{folder}/given"
    assert got(granted.attack("files", folder=given)) == {"list a folder", "create"}


def test_a_wall_that_is_missing_refuses_the_spawn_where_all_are_asked_for() -> None:
    have = dict.fromkeys(["files", "view"], "here") | {"tasks": ""}
    check(SandboxPolicy(), have)
    with pytest.raises(Denied, match="no wall for tasks"):
        check(SandboxPolicy(all_walls=True), have)


def test_status_says_which_walls_there_are(walled: Place) -> None:
    walls = walled.aios.status().walls
    assert walls.keys() == {"privileges", "files", "ports", "signals", "calls", "view", "tasks"}
