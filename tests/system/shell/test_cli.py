"""The command `aios`: what each command prints, its exit codes, and what Ctrl-C does."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
from click.testing import CliRunner
from commands import AIOS, LIMIT, answer, environment, line_of, run, started
from conftest import eventually

from aios.agents import Aios, connect
from aios.agents.runtime.runner import registered
from aios.shell.cli import cli, execute
from aios.shell.commands.logs import LOG_FILES, agent_log
from aios.shell.launch import System
from aios.shell.output import open_streams
from aios.syscalls.proc import LogPart

Program = Callable[[str], str]
UNTIL_TOLD = "print('up', flush=True)\nprint(aios.recv().body)"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_has_an_example(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert f"aios {name}" in shown.output.partition("Example")[2]


def test_version(tmp_path: Path) -> None:
    done = run(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, "aios 0.1.0\n")


def test_ctrl_c_while_it_is_loaded_ends_it_without_a_traceback() -> None:
    code = """
import os, runpy, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "aios.shell.render":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
runpy.run_module("aios.shell", run_name="__main__", alter_sys=True)"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=LIMIT,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    ["status", "stats", "ps", "sched", "check", "run demo_worker", "spawn demo_worker", "kill 1",
     "nice 1 1", "wait 1", "logs 1", "generate hi", "events", "stop"],
)  # fmt: skip
def test_without_a_kernel(args: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--home", str(tmp_path), *args.split()]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("aios: no kernel answers at ")
    assert shown.err.endswith("hint: start one with `aios start --detach`\n")


def test_the_pid_of_an_init_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "init.lock").write_text(str(os.getpid()))  # Linux gives it to another
    done = run(tmp_path, "ps", limit=5)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("aios: no kernel answers at ")


def test_errors_as_json_go_to_stderr(tmp_path: Path) -> None:
    done = run(tmp_path, "ps", "--json")
    assert (done.returncode, done.stdout) == (3, "")
    assert json.loads(done.stderr)["code"] == "kernel.gone"
    done = run(tmp_path, "ps", "--json", "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    told = json.loads(done.stderr)
    assert "--nonsense" in told["message"]
    assert told.keys() == {"code", "message", "hint"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense"], "No such command"),
        (["run", "demo_worker", "two", "tasks"], "one TASK"),
        (["run", "demo_worker", "--task-json", "{"], "--task-json"),
        (["run", "demo_worker", "--limit", "tokens=many"], "tokens: 'many' is no whole number"),
        (["run", "demo_worker", "--limit", "nonsense=1"], "NAME=NUMBER"),
        (["kill", "-s", "HUP", "1"], "'HUP'"),
        (["logs", "1", "--json", "-f"], "not with --follow"),
        (["bench", "nonsense"], "'nonsense'"),
        (["contexts", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage(
    args: list[str], says: str, system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["--home", str(system.home), *args]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["run", "nobody"], 1, "no agent is registered as 'nobody'"),
        (["run", "notes.txt"], 1, "; a file is named as NAME.py or ./NAME"),
        (["run", "./nothing.py"], 1, "nothing.py\nhint: `aios agents` lists"),
        (["generate", "a", "--schema", "none.json"], 78, "read 'none.json': No such file or dir"),
        (["logs", "999999"], 1, "no process 999999"),
        (["logs", "nobody"], 1, "no agent is named 'nobody'"),
        (["kill", "999999"], 1, "no process 999999"),
        (["nice", "-5", "999999"], 1, "no process 999999"),
        (["sched", "nonsense"], 78, "one of fifo, rr"),
        (["generate", "hi " * 2000], 1, "do not fit"),
    ],
)
def test_what_the_kernel_refuses(
    args: list[str], code: int, says: str, system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["--home", str(system.home), *args]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("aios: ")
    assert says in shown.err


# --- what is printed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (["status"], {"core", "model", "slots", "policy"}),
        (["stats"], {"calls", "generations", "ttft"}),
        (["sched"], {"policy", "quantum"}),
        (["check"], {"problems"}),
        (["agents"], {"demo_worker"}),
        (["logs", "kernel"], {"of", "text"}),
        (["logs", "init"], {"of", "text"}),
    ],
)
def test_json_and_text(args: list[str], keys: set[str], system: System) -> None:
    assert keys <= answer(system.home, *args).keys()
    plain = run(system.home, *args)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "\x1b" not in plain.stdout


def test_ps_kill_nice_and_wait(system: System, program: Program) -> None:
    path = program(UNTIL_TOLD)
    pid = answer(system.home, "spawn", path, "--name", "waiter")["pid"]
    other = int(run(system.home, "spawn", path).stdout)
    rows = {row["pid"]: row for row in answer(system.home, "ps")}
    assert rows.keys() == {pid, other}
    assert rows[pid]["name"] == "waiter"
    assert "waiter" in run(system.home, "ps", "--all").stdout
    assert answer(system.home, "nice", "5", str(pid)) == {"pid": pid, "nice": 5}

    def state() -> Any:
        return {row["pid"]: row["state"] for row in answer(system.home, "ps")}[pid]

    assert run(system.home, "kill", "-s", "stop", str(pid)).returncode == 0
    eventually(lambda: state() == "stopped")
    late = run(system.home, "wait", str(pid), "--timeout", "0.1", "--json")
    assert (late.returncode, json.loads(late.stderr)["code"]) == (1, "call.timed_out")
    assert run(system.home, "kill", "-s", "CONT", str(pid)).returncode == 0
    eventually(lambda: state() == "running")
    told = run(system.home, "kill", str(pid), str(other), "--json")
    assert (told.returncode, json.loads(told.stdout)) == (
        0, {"pids": [pid, other], "signal": "TERM"}
    )  # fmt: skip
    done = run(system.home, "wait", str(pid), str(other), "--json")
    assert done.returncode == 143
    assert [end["reason"] for end in json.loads(done.stdout)] == ["signal TERM"] * 2


@pytest.mark.parametrize("where", ["none", "file/below"])
def test_no_key_is_rotated_where_there_is_no_home(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(tmp_path / where, "key", "rotate")
    assert (done.returncode, done.stdout) == (78, "")
    assert "is not encrypted\nhint: docs/security.md" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_person_who_starts_an_mcp_server_is_told_what_it_waits_for(tmp_path: Path) -> None:
    server = pexpect.spawn(AIOS[0], [*AIOS[1:], "mcp"], env=environment(tmp_path), timeout=LIMIT)
    server.expect_exact(b"an MCP client starts this")
    server.sendintr()
    server.expect(pexpect.EOF)
    server.close()
    assert server.exitstatus == 130


def test_policy_is_set(system: System) -> None:
    before = answer(system.home, "sched")
    try:
        assert run(system.home, "sched", "fifo", "--quantum", "7").stdout == (
            "fifo, quantum 7 tokens\n"
        )
        assert answer(system.home, "sched") == {"policy": "fifo", "quantum": 7}
    finally:
        run(system.home, "sched", before["policy"], "--quantum", str(before["quantum"]))
    assert answer(system.home, "sched") == before


def test_events_are_followed(system: System, aios: Aios) -> None:
    with started(system.home, "events", "process", "-n", "2", "--json") as follower:
        eventually(lambda: any(p.name == "aios-events" and p.calls for p in aios.ps(all=True)))
        pid = aios.spawn("/bin/true")
        aios.wait(pid)
        lines = follower.communicate(timeout=LIMIT)[0].splitlines()
        assert [(e["what"], e["pid"]) for e in map(json.loads, lines)] == [
            ("started", pid), ("ended", pid)
        ]  # fmt: skip
        assert follower.returncode == 0


# --- run and logs ----------------------------------------------------------------------------


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


# --- streams that are closed, full, or read no more ------------------------------------------


def closed(system: System, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"{shlex.join(AIOS)} {line}"], env=environment(system.home), text=True,
        capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=LIMIT,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_like_an_empty_one(how: str, system: System, program: Program) -> None:
    path = program("print('said', sys.stdin.read())\nreturn 'result'")
    for line in ("status", f"run {path}", "generate hi --max-tokens 2", ""):
        done = closed(system, f"{line} {how}")
        assert (done.returncode, done.stderr) == (0, "")
        assert bool(done.stdout) == (">&-" not in how.split() and line != "")


def test_a_pipe_that_is_read_no_more_ends_quietly(system: System) -> None:
    done = closed(system, "logs kernel | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("line", ["status", "ps --json", "--help", "generate hi --max-tokens 2"])
def test_a_full_disk_is_told(line: str, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    done = closed(system, f"{line} > /dev/full")
    assert done.returncode == 1
    assert "the output: No space left on device" in done.stderr
    assert done.stderr.endswith("}\n" if "--json" in line else "hint: make room on its disk\n")


def test_errors_that_cannot_be_written_leave_the_exit_code(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert closed(system, "ps --nonsense 2> /dev/full").returncode == 1


@pytest.mark.parametrize("line", ["generate -", "send 1", ""])
def test_input_that_is_no_text_is_told(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = tmp_path / "stdin"
    stdin.write_bytes(b"status\n\xff\n")
    with stdin.open(encoding="ascii", errors="surrogateescape") as given:  # as in the locale C
        monkeypatch.setattr(sys, "stdin", given)
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        open_streams()
        assert execute(["--home", str(tmp_path), *line.split()]) == 78
    assert capsys.readouterr().err == "aios: stdin is no text in UTF-8\n"


def test_a_folder_that_is_gone_is_told(
    system: System, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    with contextlib.chdir(tmp_path / "gone"):
        (tmp_path / "gone").rmdir()
        assert execute(["--home", str(system.home), "run", "chat", "hi"]) == 78
    assert capsys.readouterr().err == "aios: this folder: No such file or directory\n"


# --- generate --------------------------------------------------------------------------------


def test_generate_answers_as_the_sdk_does(system: System, aios: Aios) -> None:
    told = aios.generate("Name a color.", max_tokens=12, temperature=0.8, seed=3, digest=True)
    options = ["--max-tokens", "12", "--temperature", "0.8", "--seed", "3"]
    assert run(system.home, "generate", "Name a color.", *options).stdout == told.text + "\n"
    done = run(system.home, "generate", "-", *options, "--digest", "--json", stdin="Name a color.")
    result = json.loads(done.stdout)
    assert (result["tokens"], result["digest"]) == (told.tokens, told.digest)


def test_generate_with_a_system_text_and_a_stop_string(system: System) -> None:
    plain = answer(system.home, "generate", "Count.", "--max-tokens", "24")
    other = answer(system.home, "generate", "Count.", "--max-tokens", "24", "--system", "Be terse.")
    assert other["usage"]["prompt"] != plain["usage"]["prompt"]
    word = plain["text"].split()[1]
    cut = answer(system.home, "generate", "Count.", "--max-tokens", "24", "--stop", word)
    assert (cut["finish"], cut["text"]) == ("stop", plain["text"].partition(word)[0])


def test_ctrl_c_cancels_a_generation(talker: System, talking: Aios) -> None:
    before = talking.stats().completion_tokens
    text = "Once upon a time"
    with started(talker.home, "generate", text, "--raw", "--max-tokens", "900") as command:
        assert command.stdout is not None
        first = os.read(command.stdout.fileno(), 1)  # it streams: this is long before the end
        assert len(first) == 1
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=LIMIT)
        assert command.returncode == 130
        assert 0 < talking.stats().completion_tokens - before < 900


# --- bench and completion --------------------------------------------------------------------


def test_bench_prints_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: dict[str, Any] = {
        "ratio": 0.004, "ours": {"seconds": 0.01}, "peer": {"seconds": 2.5},
    }  # fmt: skip

    def fake(progress: Callable[[str], None]) -> dict[str, Any]:
        progress("measuring")
        return measured

    module = types.ModuleType("aios.bench.switch")
    module.__dict__.update(run=fake, TARGET=0.01)
    monkeypatch.setitem(sys.modules, "aios.bench.switch", module)
    assert execute(["bench", "switch", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"bench": "switch", "target": 0.01, **measured}
    assert shown.err == ""
    assert execute(["bench", "switch"]) == 0
    shown = capsys.readouterr()
    assert re.search(r"^SWITCH +OURS +PEER +TARGET\n.*^ratio +0.004 +0.01$", shown.out, re.M | re.S)
    assert shown.err == "measuring\n"
    measured |= {"targets": {"seconds": 0.001}, "missed": ["seconds"]}
    assert execute(["bench", "switch"]) == 1
    assert re.search(r"^seconds +0.01 +2.5 +0.001 missed$", capsys.readouterr().out, re.M)


def test_bench_without_its_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "aios.bench.throughput", None)
    assert execute(["bench", "throughput"]) == 1
    assert "pip install 'aios-system[bench]'" in capsys.readouterr().err


def test_only_retrieval_takes_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "retrieval", "--data", str(tmp_path)]) == 78
    assert "docs.jsonl" in capsys.readouterr().err
    assert execute(["bench", "swap", "--data", str(tmp_path)]) == 2
    assert "takes no --data" in capsys.readouterr().err


def test_completion_in_bash(system: System, aios: Aios, program: Program) -> None:
    pid = aios.spawn(program(UNTIL_TOLD), name="sleeper")

    def complete(words: str, at: int) -> list[str]:
        done = run(
            system.home, _AIOS_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(at)
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("aios sta", 1) == ["start", "stats", "status"]
    assert complete("aios kill ", 2) == [str(pid)]
    assert complete("aios kill s", 2) == ["sleeper"]
    assert complete("aios logs k", 2) == ["kernel"]
    assert complete("aios sched ", 2) == ["fifo", "rr"]
    assert complete(f"aios kill --home {system.home} s", 4) == ["sleeper"]
    aios.kill(pid)
    aios.wait(pid)


def offered_by_bash(cwd: Path, *words: str) -> tuple[list[str], list[str]]:
    """Return what a bash that has the completion offers for the last of the words, and which of
    its own completions it adds. `complete` and `compopt` work in an interactive bash alone."""
    script = f"""
        complete() {{ function=$4; }}
        compopt() {{ echo "option $2"; }}
        aios() {{ {shlex.join(AIOS)} "$@"; }}
        eval "$(_AIOS_COMPLETE=bash_source aios)"
        COMP_WORDS=({shlex.join(["aios", *words])}); COMP_CWORD={len(words)}
        PATH="$PWD/bin:$PATH"; $function aios; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    (cwd / "bin").mkdir(exist_ok=True)
    (cwd / "bin" / "aios").write_text(f'#!/bin/sh\nexec {shlex.join(AIOS)} "$@"\n')
    (cwd / "bin" / "aios").chmod(0o755)
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=cwd, capture_output=True, text=True, check=True,
        env=environment(cwd),
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line]
    options = [line.removeprefix("option ") for line in lines if line.startswith("option ")]
    return [line for line in lines if not line.startswith("option ")], options


def test_programs_are_completed_to_agents_and_python_files(tmp_path: Path) -> None:
    for name in ("sum.py", "notes.txt", ".hidden.py", "deep/below/agent.py", "deep/below/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    offered, options = offered_by_bash(tmp_path, "run", "")
    assert {*registered(), "sum.py", "deep/"} <= set(offered)
    assert not options
    assert "notes.txt" not in offered and ".hidden.py" not in offered
    assert offered_by_bash(tmp_path, "run", "sum")[0] == ["summarize", "summarize_piece", "sum.py"]
    assert offered_by_bash(tmp_path, "spawn", "de")[0][-2:] == ["demo_worker", "deep/"]
    assert offered_by_bash(tmp_path, "run", "dee")[0] == ["deep/", "deep/below/"]
    below = str(tmp_path / "deep/be")
    assert offered_by_bash(tmp_path, "run", below)[0] == [f"{below}low/", f"{below}low/agent.py"]
    assert offered_by_bash(tmp_path, "run", "summarize", "no") == ([], ["default"])  # files


def test_home_option_comes_before_the_environment(system: System, tmp_path: Path) -> None:
    done = run(tmp_path, "--home", str(system.home), "status", "--json")
    with connect(system.home) as aios:
        assert json.loads(done.stdout)["boot"] == aios.status().boot


def test_contexts_are_listed_and_forgotten(system: System, aios: Aios) -> None:
    aios.open("Be brief.", name="diary", on_full="slide").close()
    with aios.open():
        rows = {row["name"]: row for row in answer(system.home, "contexts")}
        assert (rows["diary"]["state"], rows["diary"]["on_full"]) == ("asleep", "slide")
        assert rows[None]["state"] == "idle"
        assert "diary" in run(system.home, "contexts").stdout
    left = run(system.home, "contexts", "--forget", "test/diary", "--json").stdout
    assert "diary" not in left
    assert run(system.home, "contexts", "--forget", "test/diary").returncode == 1
