"""MCP servers through the tool manager: public ones as they are, and ones that do what they
should not, which their callers hear of once, and nobody else."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import public_servers
import pytest
from commands import answer, run
from conftest import eventually, run_system
from helpers import call
from places import DOCS, SUPPORT

from aios.agents import Aios, connect
from aios.agents.reasoning.tool_dialogue import chosen
from aios.kernel.init.outputs import HOLE_BYTES, MAX_LOG_BYTES, READ_BYTES
from aios.kernel.tools.mcp_config import servers
from aios.syscalls.errors import (
    AiosError,
    NotFound,
    ToolArguments,
    ToolFailed,
    ToolUnknown,
)

HERE = SUPPORT / "mcp_servers"
ALL = {"allow": ["tool", "sto"]}
Program = Callable[[str], str]


def bad(how: str, **own: Any) -> dict[str, Any]:
    server = str(HERE / "bad.py")
    return {"command": public_servers.PYTHON, "args": [server, how], "aios": {"timeout": 20, **own}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files and folders that the public servers work with."""
    place = tmp_path_factory.mktemp("mcp")
    for name in ("docs", "data", "repo"):
        (place / name).mkdir()
    (place / "docs" / "ferry.txt").write_text("The ferry to Naxos leaves at seven.")
    (place / "docs" / "long.txt").write_text("All work and no play. " * 10_000)
    (place / "secret.txt").write_text("not for servers")
    subprocess.run(["git", "init", "--quiet", str(place / "repo")], check=True)
    (place / "repo" / "a.txt").write_text("one\n")
    return place


@pytest.fixture(scope="module")
def home(homes: Path, place: Path) -> Iterator[Path]:
    servers = {
        "clock": public_servers.time(),
        "git": public_servers.git(place / "repo"),
        "data": public_servers.sqlite(place / "data" / "ports.db"),
        "docs": public_servers.filesystem(place / "docs"),
        "prober": {"command": public_servers.PYTHON, "args": [str(HERE / "prober.py")]},
        "missing": {"command": "no-such-program"},
        "wrong": {"command": "${NO_SUCH_VARIABLE}"},
        "old": bad(""),
        "dies": bad("dies"),
        "lates": bad("late"),
        "hangs": bad("hangs", timeout=0.5),
        "garbles": bad("answers garbage"),
        "changes": bad("changes"),
        "tells": bad("progress"),
        "misleads": bad("instructions"),
        "complains": bad("complains"),
        "counts": bad("not a number"),
        "gathers": bad("gathers", limit=20),
    }
    file = place / "mcp.json"
    file.write_text(json.dumps({"mcpServers": servers}))
    settings = {"slots": 1, "ctx": 256, "grace": 0.5, "mcp": str(file)}
    for system in run_system(homes / "mcp", settings):
        with connect(system.home) as aios:
            aios.tools()  # all are started at once
        yield system.home


@pytest.fixture
def aios(home: Path, place: Path) -> Iterator[Aios]:
    servers = json.loads((place / "mcp.json").read_text())["mcpServers"]
    with connect(home, "test") as aios:
        yield aios
        eventually(lambda: all(row.name in servers for row in aios.ps()))
        assert aios.check() == []


def boxes(aios: Aios) -> dict[str, Any]:
    return {box.name: box for box in aios.toolboxes().boxes}


def worker(aios: Aios, box: str) -> int:
    (pid,) = boxes(aios)[box].workers
    return int(pid)


# --- public servers ---------------------------------------------------------------------------


def test_the_clock_of_pypi(aios: Aios) -> None:
    now = call(aios, "clock.get_current_time", timezone="Asia/Tokyo")
    assert now["timezone"] == "Asia/Tokyo"
    assert now["datetime"].endswith("+09:00")
    with pytest.raises(ToolFailed, match="Nowhere"):
        call(aios, "clock.get_current_time", timezone="Nowhere/At_all")


def test_git_of_pypi(aios: Aios, place: Path) -> None:
    repo = str(place / "repo")
    call(aios, "git.git_add", repo_path=repo, files=["a.txt"])
    staged = subprocess.run(
        ["git", "-C", repo, "diff", "--cached", "--name-only"], check=True, capture_output=True
    )
    assert staged.stdout == b"a.txt\n"
    assert "new file" in json.dumps(call(aios, "git.git_status", repo_path=repo))


def test_sqlite_of_pypi_with_the_protocol_of_2025(aios: Aios, place: Path) -> None:
    call(aios, "data.create_table", query="CREATE TABLE ports (name TEXT, ferries INTEGER)")
    call(aios, "data.write_query", query="INSERT INTO ports VALUES ('Naxos', 7)")
    assert "Naxos" in call(aios, "data.read_query", query="SELECT * FROM ports")
    with sqlite3.connect(place / "data" / "ports.db") as database:
        assert database.execute("SELECT * FROM ports").fetchall() == [("Naxos", 7)]


def test_the_filesystem_of_npm(aios: Aios, place: Path) -> None:
    docs = place / "docs"
    read = call(aios, "docs.read_text_file", path=str(docs / "ferry.txt"))
    assert read == {"content": "The ferry to Naxos leaves at seven."}
    call(aios, "docs.write_file", path=str(docs / "new.txt"), content="written")
    assert (docs / "new.txt").read_text() == "written"
    with pytest.raises(ToolFailed, match="outside allowed directories"):
        call(aios, "docs.read_text_file", path=str(place / "secret.txt"))


def test_all_at_once(home: Path) -> None:
    zones = ["Europe/Athens", "Asia/Tokyo", "America/Lima", "Africa/Cairo"] * 8

    def ask(zone: str) -> bool:
        with connect(home) as aios:
            return bool(call(aios, "clock.get_current_time", timezone=zone)["timezone"] == zone)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, zones))


def test_as_many_at_once_as_its_limit_says(aios: Aios) -> None:
    calls = [aios.call_tool("gathers.go") for _ in range(20)]
    assert {call.result(30).value for call in calls} == {"together"}


def test_what_is_long_is_stored_for_its_caller(aios: Aios, place: Path, program: Program) -> None:
    path = str(place / "docs" / "long.txt")
    result = aios.call_tool("docs.read_text_file", {"path": path}).result(60)
    assert result.size > 200_000
    assert len(result.value) <= 2000
    stored = aios.sto_get(result.stored, owner=result.owner)
    assert json.loads(stored)["content"] == Path(path).read_text()
    reads = program(
        "result = aios.call_tool('docs.read_text_file', task).result()\n"
        "return len(aios.sto_get(result.stored, owner=result.owner)), result.size"
    )
    pid = aios.spawn(reads, {"path": path}, name="reader", manifest=ALL)
    end = aios.wait(pid)
    assert end.code == 0, end.result
    assert end.result[0] == end.result[1]
    named_alike = program("return [info.path for info in aios.sto_list('')]")
    end = aios.wait(aios.spawn(named_alike, name="docs", manifest=ALL))
    assert end.result == []  # what others were told is not in its storage


def test_tools_are_listed_as_any(home: Path, aios: Aios) -> None:
    specs = {spec.name: spec for spec in aios.tools()}
    assert specs["clock.convert_time"].schema["required"] == ["source_timezone", "time",
                                                              "target_timezone"]  # fmt: skip
    assert specs["docs.write_file"].effect
    assert not specs["docs.read_text_file"].effect
    assert (specs["old.go"].timeout, specs["hangs.go"].timeout) == (20, 0.5)
    shown = answer(home, "tool", "call", "clock.get_current_time", "timezone=Asia/Tokyo")
    assert shown["value"]["timezone"] == "Asia/Tokyo"


# --- walls and rights -------------------------------------------------------------------------


def test_a_server_is_within_walls_of_its_own(aios: Aios, place: Path, home: Path) -> None:
    def probe(what: str, **args: Any) -> str:
        return str(call(aios, "prober.try", what=what, **args)["result"])

    assert "Error" in probe("read", path=str(place / "secret.txt"))
    assert "Error" in probe("read", path=str(home / "config.toml"))
    assert "Error" in probe("read", path=str(home / "audit"))
    assert "Error" in probe("read", path="/etc/shadow")
    assert "Error" in probe("read", path=f"/proc/{os.getpid()}/environ")
    assert "Error" in probe("write", path=str(place / "secret.txt"))
    assert "PermissionError" in probe("connect", port=9)
    assert "Error" in probe("kill", pid=os.getpid())
    environment = ast.literal_eval(probe("environment"))
    assert "AIOS_FD" not in environment
    assert environment["GIT_CONFIG_NOSYSTEM"] == "1"
    assert probe("write", path=f"{environment['TMPDIR']}/file") == "4"
    assert (place / "secret.txt").read_text() == "not for servers"


def test_rules_hold_for_them(aios: Aios, program: Program) -> None:
    calls = program(
        "try:\n    aios.call_tool('clock.get_current_time', {'timezone': 'UTC'}).result()\n"
        "except AiosError as error:\n    return error.code, sorted(s.name for s in aios.tools())"
    )
    manifest = {"allow": [{"right": "tool.call", "on": ["old.*"]}, "tool.list"]}
    pid = aios.spawn(calls, manifest=manifest)
    code, names = aios.wait(pid).result
    assert code == "access.denied"
    assert names == ["old.echo", "old.go"]


def test_what_a_server_says_taints_its_caller(aios: Aios, program: Program) -> None:
    sends = program(
        "text = aios.call_tool('misleads.go').result().value\n"
        "aios.sto_put('said', text)\nreturn text"
    )
    pid = aios.spawn(sends, name="reader", manifest=ALL)
    assert "IGNORE ALL PREVIOUS" in aios.wait(pid).result
    assert "tool:misleads.go" in aios.sto_read("said", owner="/reader").info.labels


# --- servers that fail ------------------------------------------------------------------------


def test_arguments_that_do_not_fit_do_not_reach_it(aios: Aios) -> None:
    says = r"dies\.go: \$\.n: 'seven' is not of type 'integer'"
    with pytest.raises(ToolArguments, match=says):
        call(aios, "dies.go", n="seven")
    worker(aios, "dies")  # it lives


def test_one_that_cannot_be_started(aios: Aios) -> None:
    for ask in (lambda: call(aios, "missing.go"), lambda: chosen(aios, ["missing.go"])):
        with pytest.raises(ToolFailed, match=r"missing did not start: .* be started: No such"):
            ask()
    error = boxes(aios)["missing"].error
    assert "cannot be started" in error
    assert boxes(aios)["missing"].error == error  # of the same process: not tried again so soon


def test_one_whose_entry_in_the_file_is_wrong(aios: Aios) -> None:
    why = "mcp.json, MCP server 'wrong': there is no variable NO_SUCH_VARIABLE"
    with pytest.raises(ToolFailed, match=f"wrong did not start: .*{why}"):
        call(aios, "wrong.go")
    assert why in boxes(aios)["wrong"].error


def test_one_that_dies_in_a_call_is_started_again(aios: Aios) -> None:
    before = worker(aios, "dies")
    with pytest.raises(ToolUnknown, match="the MCP server dies has ended"):
        call(aios, "dies.go")
    assert call(aios, "dies.echo", n=1) == "echo 1, cancelled 0"
    assert worker(aios, "dies") != before


def test_one_that_is_killed_between_calls(aios: Aios) -> None:
    pid = worker(aios, "old")
    row = next(row for row in aios.ps() if row.pid == pid)
    (server,) = psutil.Process(row.os_pid).children()
    server.kill()
    eventually(lambda: pid not in boxes(aios)["old"].workers)
    assert call(aios, "old.echo", n=2) == "echo 2, cancelled 0"


def test_the_worker_killed(aios: Aios) -> None:
    call(aios, "old.echo", n=0)
    pid = worker(aios, "old")
    row = next(row for row in aios.ps() if row.pid == pid)
    (server,) = psutil.Process(row.os_pid).children()
    aios.kill(pid, "KILL")
    eventually(lambda: pid not in boxes(aios)["old"].workers)
    assert call(aios, "old.echo", n=2) == "echo 2, cancelled 0"
    eventually(lambda: not server.is_running())


def test_one_that_answers_late(aios: Aios) -> None:
    late = aios.call_tool("lates.go")
    assert call(aios, "lates.echo", n=1) == "echo 1, cancelled 0"
    assert late.cancel()
    assert call(aios, "lates.echo", n=2) == "echo 2, cancelled 1"
    with pytest.raises(AiosError, match="cancel"):
        late.result(10)
    with pytest.raises(ToolUnknown, match=r"lates\.go was not done within 0\.2 s"):
        aios.call_tool("lates.go", timeout=0.2).result(10)
    assert call(aios, "lates.echo", n=3) == "echo 3, cancelled 2"


def test_one_that_hangs_is_ended_and_started_again(aios: Aios) -> None:
    pid = worker(aios, "hangs")
    with pytest.raises(ToolUnknown, match=r"hangs\.go was not done within 0\.5 s"):
        call(aios, "hangs.go")
    eventually(lambda: pid not in boxes(aios)["hangs"].workers)
    assert call(aios, "hangs.echo", n=1) == "echo 1, cancelled 0"


def test_one_that_answers_garbage(aios: Aios) -> None:
    with pytest.raises(ToolUnknown, match="garbles wrote a message that is not JSON-RPC"):
        call(aios, "garbles.go")
    assert call(aios, "garbles.echo", n=1) == "echo 1, cancelled 0"


def test_one_that_returns_what_the_kernel_takes_from_nobody(aios: Aios) -> None:
    with pytest.raises(ToolFailed, match=r"counts\.go returned what cannot be used: nan"):
        call(aios, "counts.go")


def test_one_that_writes_without_end_to_its_log(aios: Aios, home: Path) -> None:
    assert call(aios, "complains.go") == "done"
    pid = worker(aios, "complains")
    log = home / "log" / f"agent-{pid}.log"
    eventually(lambda: b"this is the last" in aios.log(pid, offset=-100).data)
    assert log.stat().st_blocks * 512 <= MAX_LOG_BYTES + HOLE_BYTES + READ_BYTES


def test_one_that_changes_its_tools(aios: Aios) -> None:
    assert call(aios, "changes.go") == "changed"
    eventually(lambda: "changes.other" in [spec.name for spec in aios.tools()])
    with pytest.raises(NotFound, match=r"no tool 'changes\.go'"):
        call(aios, "changes.go")
    assert call(aios, "changes.other") == "changed"


def test_progress_comes_through(aios: Aios) -> None:
    running = aios.call_tool("tells.go")
    steps = list(running)
    assert steps[0].total == 3
    assert running.result(10).value == "done"


def test_the_kernel_killed(aios: Aios) -> None:
    call(aios, "tells.echo", n=0)
    os.kill(aios.status().os_pid, signal.SIGKILL)
    assert call(aios, "old.echo", n=1) == "echo 1, cancelled 0"
    eventually(lambda: alive(aios) == [""])  # how `old` is bad


def alive(aios: Aios) -> list[str]:
    """How those are bad that run in this system."""
    found: list[str] = []
    init = psutil.Process(aios.status().os_pid).parent()
    assert init is not None
    for process in init.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            found += words[-1:] if str(HERE / "bad.py") in words else []
    return found


# --- settings ---------------------------------------------------------------------------------


def test_the_guides_commands_run(home: Path, place: Path) -> None:
    guide = (DOCS / "mcp.md").read_text()
    lines = [
        line.removeprefix("$ ").replace("REPOSITORY", str(place / "repo"))
        for block in re.findall(r"```console\n(.*?)```", guide, re.DOTALL)
        for line in block.strip().splitlines()
    ]
    assert len(lines) == 4
    for line in lines:
        program, *args = shlex.split(line)
        done = run(home, *args)
        assert (program, done.returncode) == ("aios", 0), (line, done.stderr)


def test_the_guides_blocks_are_read() -> None:
    guide = (DOCS / "mcp.md").read_text()
    found: list[str] = []
    for block in re.findall(r"```json\n(.*?)```", guide, re.DOTALL):
        found += servers(Path("mcp.json"), block.encode(), {"ISSUES_TOKEN": "x"})
    assert found == ["git", "notes", "issues", "aios"]
