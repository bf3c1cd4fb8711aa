"""`aios run`, `aios logs` and `aios events` as a person runs them, to the end or to Ctrl-C."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import LIMIT, answer, line_of, run, started
from conftest import eventually
from helpers import UNTIL_TOLD

from aios.agents import Aios
from aios.shell.cli import execute
from aios.shell.commands.logs import LOG_FILES, agent_log
from aios.shell.launch import System
from aios.syscalls.proc import LogPart

Program = Callable[[str], str]


def test_run_prints_the_log_and_the_result(system: System, program: Program) -> None:
    path = Path(
        program("print('working', end='')\nprint('!', file=sys.stderr, end='')\nreturn task")
    )
    done = run(system.home, "run", f"./{path.name}", "a task", cwd=path.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "working!\na task\n", "")
    given = json.dumps({"depth": [1, 2]})
    done = run(system.home, "run", str(path), "--task-json", given, "--json")
    end = json.loads(done.stdout)
    assert (end["code"], end["reason"], end["result"]) == (0, "exit", {"depth": [1, 2]})
    assert done.stderr == "working!\n"


def test_run_exits_with_the_code_of_the_agent(system: System, program: Program) -> None:
    done = run(system.home, "run", program("sys.exit(7)"))
    assert done.returncode == 7
    assert done.stderr.startswith("aios: process ")
    assert done.stderr.endswith("ended with code 7: exit\n")


def test_run_an_executable_with_arguments(system: System) -> None:
    done = run(system.home, "run", "/bin/echo", "--", "-e", "two words", "--json")
    assert (done.returncode, done.stdout) == (0, "two words --json\n")


def test_run_under_a_limit(system: System, program: Program) -> None:
    path = program("return aios.generate('Hi', max_tokens=64, ignore_eos=True).text")
    done = run(system.home, "run", path, "--limit", "tokens=40", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["result"]["error"].startswith("LimitReached: ")


@pytest.mark.parametrize("deaf", [False, True])
def test_ctrl_c_ends_the_agent(deaf: bool, system: System, aios: Aios, program: Program) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    with started(system.home, "run", program(ignore + UNTIL_TOLD)) as runner:
        assert line_of(runner) == "up\n"
        (row,) = aios.ps()
        runner.send_signal(signal.SIGINT)
        runner.communicate(timeout=LIMIT)
        assert runner.returncode == 130
        assert aios.wait(row.pid).reason == ("signal KILL" if deaf else "signal TERM")


def test_one_that_is_not_there_keeps_no_other_from_its_end(
    system: System, aios: Aios, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    pids = [aios.spawn(program("aios.recv()")) for _ in range(2)]
    args = ["kill", str(pids[0]), "999999", str(pids[1])]
    assert execute(["--home", str(system.home), *args]) == 1
    assert capsys.readouterr().err.startswith("aios: no process 999999\n")
    assert [aios.wait(pid, timeout=LIMIT).reason for pid in pids] == ["signal TERM"] * 2


class ClosedPipe(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_an_agent_ends_with_the_pipe_that_its_log_goes_into(
    system: System, aios: Aios, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    with pytest.raises(SystemExit) as caught:
        execute(["--home", str(system.home), "run", program(UNTIL_TOLD)])
    assert caught.value.code == 1
    assert aios.ps() == []


def test_logs_are_followed_to_the_end(system: System, aios: Aios, program: Program) -> None:
    pid = aios.spawn(program("print('before')\n" + UNTIL_TOLD))
    with started(system.home, "logs", "-f", str(pid)) as follower:
        assert [line_of(follower), line_of(follower)] == ["before\n", "up\n"]
        aios.send(pid, "told")
        assert follower.communicate(timeout=LIMIT) == ("told\n", "")
        assert follower.returncode == 0
        assert run(system.home, "logs", "-n", "2", str(pid)).stdout == "up\ntold\n"
        assert answer(system.home, "logs", "-n", "0", str(pid)) == {"of": str(pid), "text": ""}


class Flood:
    """An agent that prints more than is read meanwhile."""

    size = calls = 0

    def log(self, _: int, offset: int = 0) -> LogPart:
        self.calls += 1
        assert self.calls < 20, "it is read without end"
        self.size += 100_000
        begin = max(0, self.size + offset if offset < 0 else offset)
        data = b"y" * min(32_768, self.size - begin)
        return LogPart(data=data, offset=begin + len(data), ended=False)


def test_the_log_of_an_agent_that_prints_without_end_has_one() -> None:
    aios: Any = Flood()
    assert len(b"".join(agent_log(aios, 1, follow=False))) >= 100_000


def test_a_log_file_is_followed(system: System, tmp_path: Path) -> None:
    log = tmp_path / "init.log"
    log.write_text("one\ntwo\n")
    with started(tmp_path, "logs", "-f", "-n", "1", "init") as follower:
        assert line_of(follower) == "two\n"
        with log.open("a") as more:
            more.write("three\n")
        assert line_of(follower) == "three\n"
        log.write_text("anew\n")
        assert line_of(follower) == "anew\n"
        follower.send_signal(signal.SIGINT)
        follower.communicate(timeout=LIMIT)
        assert follower.returncode == 130
        missing = run(tmp_path, "logs", "core")
        assert (missing.returncode, missing.stdout) == (1, "")


@pytest.mark.parametrize("name", ["kernel", "core", "init", "index", "gateway"])
def test_every_log_of_the_system_has_a_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / LOG_FILES[name]
    missing = run(tmp_path, "logs", name)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith(f"aios: there is no log {path}\nhint: it begins when {name} ")
    path.parent.mkdir(exist_ok=True)
    path.write_text("said\n")
    assert run(tmp_path, "logs", name).stdout == "said\n"


def test_no_log_of_the_system_is_left_out(system: System, aios: Aios) -> None:
    aios.sto_put("spare", "text")  # the index begins with the first object
    aios.sto_search("text", fresh=True)
    aios.sto_purge("spare")
    found = {path.relative_to(system.home).as_posix() for path in system.home.glob("**/*.log")}
    assert {log for log in found if not log.startswith("log/agent-")} <= {*LOG_FILES.values()}


@pytest.mark.parametrize("kind", ["index", "gateway"])
def test_events_of_each_kind_are_followed(kind: str, system: System, aios: Aios) -> None:
    with started(system.home, "events", kind) as follower:
        eventually(lambda: any(p.name == "aios-events" and p.calls for p in aios.ps(all=True)))
        follower.send_signal(signal.SIGINT)
        follower.communicate(timeout=LIMIT)
        assert follower.returncode == 130
