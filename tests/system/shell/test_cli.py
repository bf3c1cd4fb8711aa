"""The command `aios`: what each command prints, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
from click.testing import CliRunner
from commands import AIOS, LIMIT, answer, environment, run, started
from conftest import eventually
from helpers import UNTIL_TOLD

from aios.agents import Aios, connect
from aios.shell.cli import cli, execute
from aios.shell.launch import System

Program = Callable[[str], str]


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
        (["sched", "nonsense"], 78, "one of fair, fifo"),
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


# --- homes and contexts ----------------------------------------------------------------------


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
