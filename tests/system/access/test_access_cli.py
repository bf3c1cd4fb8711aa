"""`aios group`, `grant`, `policy` as a person runs them; docs/access.md is run as well."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import psutil
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from commands import AIOS, LIMIT, environment, line_of, started
from conftest import eventually, run_system
from places import DOCS

from aios.agents import connect
from aios.kernel.manifests import rules_of
from aios.kernel.rules import AccessRequest, RuleEvaluator, Subject
from aios.shell.cli import cli, execute
from aios.syscalls.rules import Group, Manifest

Open = Callable[..., Any]
GUIDE = DOCS / "access.md"
COMMANDS = ["group list", "group set", "group remove", "grant", "revoke", "grants", "policy check",
            "policy ask", "policy answer"]  # fmt: skip
ASKER = "return aios.mem_put({'a': 1}) or 'done'"
ASKING = 'allow = ["msg"]\nask = ["mem.write"]\n'


@pytest.fixture(scope="module")
def home(homes: Path) -> Iterator[Path]:
    """The home of a system that only these tests use."""
    for system in run_system(homes / "access", {"slots": 1, "ctx": 256}):
        yield system.home


@pytest.fixture
def asker(tmp_path: Path, program: Callable[[str], str]) -> list[str]:
    """The command line of an agent that asks a person before it writes."""
    (tmp_path / "asking.toml").write_text(ASKING)
    return [program(ASKER), "--manifest", str(tmp_path / "asking.toml")]


def run(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """In this process: a tenth of the time."""
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(["--home", str(home), *args])
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(args, code, *said)


def fine(home: Path, *args: str) -> str:
    done = run(home, *args)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def answer(home: Path, *args: str) -> Any:
    return json.loads(fine(home, *args, "--json"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    shown = CliRunner().invoke(cli, [*name.split(), "--help"])
    assert shown.exit_code == 0
    assert f"aios {name}" in shown.output.partition("Example")[2]


def test_groups(home: Path, tmp_path: Path) -> None:
    fine(home, "group", "set", "team", "--member", "/a", "--allow", "llm", "--deny", "msg /b")
    for _ in range(2):  # what is there is not there twice
        fine(home, "group", "set", "team", "--member", "/a", "--member", "/t/*", "--ask", "mem")
    team = {"members": ["/a", "/t/*"], "allow": ["llm"], "ask": ["mem"], "deny": ["msg /b"]}
    assert answer(home, "group", "list")["team"] == team
    lines = [line.split() for line in fine(home, "group", "list").splitlines()]
    assert ["team", "deny", "msg", "/b"] in lines
    fine(home, "group", "remove", "team", "--member", "/a", "--rule", "llm")
    assert answer(home, "group", "list")["team"]["members"] == ["/t/*"]
    assert answer(home, "group", "list")["team"]["allow"] == []

    (tmp_path / "team.toml").write_text(
        'members = ["/a"]\nask = ["mem"]\ndeny = [{ right = "llm", tainted = ["msg:**"] }]'
    )
    fine(home, "group", "set", "team", "--file", str(tmp_path / "team.toml"))
    (rule,) = answer(home, "group", "list")["team"]["deny"]
    assert rule["tainted"] == ["msg:**"]
    assert "msg:**" in fine(home, "group", "list")
    refused = run(home, "group", "remove", "team", "--rule", "llm")
    assert refused.returncode == 1
    assert "'llm' is not in 'team'" in refused.stderr
    assert "`aios group set NAME --file`" in refused.stderr
    fine(home, "group", "remove", "team", "--member", "/a", "--rule", "mem")
    left = {"members": [], "allow": [], "ask": [], "deny": [rule]}
    assert answer(home, "group", "list")["team"] == left
    fine(home, "group", "remove", "team")
    assert "team" not in answer(home, "group", "list")


def test_grants(home: Path) -> None:
    number = fine(home, "grant", "/buyer", "tool", "pay", "--arg", "amount=0..100").strip()
    second = answer(home, "grant", "/team/*", "proc.control", "/w", "/x", "--for", "3600")["id"]
    assert second == int(number) + 1
    first, other = answer(home, "grants")
    assert first["args"] == {"amount": {"min": 0, "max": 100}}
    assert (first["to"], first["giver"], first["expires"]) == ("/buyer", "", None)
    assert (other["on"], other["to"]) == (["/w", "/x"], "/team/*")
    assert 3500 < other["expires"] - time.time() < 3700
    assert "a person" in fine(home, "grants")

    asked = ["policy", "check", "/buyer", "tool", "pay", "--arg"]
    assert fine(home, *asked, "amount=99.5") == f"allow: grant {number} of a person\n"
    assert run(home, *asked, "amount=101").returncode == 1
    fine(home, "revoke", number)
    denied = run(home, *asked, "amount=99.5")
    assert (denied.returncode, denied.stdout) == (1, "deny: no rule allows it\n")
    fine(home, "revoke", str(second))
    assert answer(home, "grants") == []


def test_check_explains(home: Path) -> None:
    fine(home, "group", "set", "quiet", "--member", "/a", "--deny", "msg.send /b")
    said = run(home, "policy", "check", "/a", "msg.send", "/b", "--explain")
    assert said.returncode == 1
    assert said.stdout.splitlines() == [
        "deny: group quiet: deny msg.send on /b",
        "fits: group agents: allow msg",
        "fits: group quiet: deny msg.send on /b",
    ]
    verdict = answer(home, "policy", "check", "/a", "msg.send", "/c")
    assert (verdict["effect"], verdict["tainted"]) == ("allow", [])
    fine(home, "group", "remove", "quiet")


def test_a_question_is_printed_and_answered(home: Path, asker: list[str]) -> None:
    following = started(home, "policy", "ask", "--json", "-n", "1")
    with following as follower, started(home, "run", *asker) as agent:
        question = json.loads(line_of(follower))
        assert (question["call"], question["rule"].split(": ")[1]) == (
            "mem.put",
            "ask mem.write",
        )
        assert follower.wait(LIMIT) == 0
        fine(home, "policy", "answer", str(question["id"]), "once")
        assert agent.wait(LIMIT) == 0
        assert agent.stdout is not None
        assert agent.stdout.read() == "done\n"
    late = run(home, "policy", "answer", str(question["id"]), "once")
    assert late.returncode == 1
    assert late.stderr.startswith("aios: no question ")


def test_errors_say_what_to_do(home: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('allow = ["llm"')
    (tmp_path / "odd.toml").write_text('permit = ["llm"]')
    (tmp_path / "rule.toml").write_text('allow = ["Not A Rule"]')
    for args, code, said in (
        (["group", "remove", "nobody"], 1, "aios: no group 'nobody'"),
        (["group", "remove", "nobody", "--rule", "llm"], 1, "aios: no group 'nobody'"),
        (["group", "remove", "agents"], 78, "cannot be removed"),
        (["group", "remove", "agents", "--rule", "sto.purge"], 1, "is not in 'agents'"),
        (["group", "set", "bad", "--allow", "Not A Rule"], 78, 'hint: write "RIGHT"'),
        (["group", "set", "bad", "--member", "nobody"], 2, "is not /NAME"),
        (["group", "set", "bad", "--file", str(tmp_path / "bad.toml")], 78, "docs/access.md"),
        (["group", "set", "agents", "--deny", "sto.wirte"], 78, "hint: one of acc.answer, "),
        (["grant", "/a", "tool.cal", "pay"], 78, "no call needs the right 'tool.cal'"),
        (["policy", "check", "/a", "mem.reed"], 78, "no call needs the right 'mem.reed'"),
        (["run", "chat", "--manifest", str(tmp_path / "odd.toml")], 78, "`permit`"),
        (["run", "chat", "--manifest", str(tmp_path / "rule.toml")], 78, "no rule: "),
        (["run", "chat", "--manifest", str(tmp_path / "none.toml")], 2, "does not exist"),
        (["grant", "/a", "sto.read", "/b:**"], 78, "hint: its owner shares it"),
        (["grant", "/a", "llm", "--arg", "amount"], 2, "NAME=PATTERN"),
        (["grant", "/a", "llm", "--for", "0"], 2, "'--for': 0.0 is not in the range x>0."),
        (["revoke", "999"], 1, "hint: `aios grants` lists them"),
        (["revoke", "one"], 2, "'one' is no whole number in the range x>=1"),
        (["policy", "check", "999999", "llm"], 1, "aios: no process"),
        (["policy", "answer", "1", "maybe"], 2, "'maybe' is not one of"),
        (["policy", "answer", "999", "once"], 1, "aios: no question 999"),
    ):
        done = run(home, *args)
        assert done.returncode == code, done
        assert said in done.stderr, done
        assert done.stdout == ""
    assert json.loads(run(home, "revoke", "999", "--json").stderr)["code"] == "not_found"


def test_a_manifest_binds_what_is_run(
    home: Path, program: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "tight.toml").write_text('allow = ["acc.read"]\n')
    path = program("return aios.check_access('llm').rule, aios.ps()")
    done = run(home, "run", path, "--manifest", str(tmp_path / "tight.toml"))
    assert done.returncode == 1
    assert "may not proc.ps: no rule allows it" in done.stdout + done.stderr


def test_numbers_and_names_are_completed(home: Path) -> None:
    fine(home, "group", "set", "painters", "--allow", "llm")
    number = fine(home, "grant", "/a", "llm").strip()
    assert completed(home, ["revoke"], number) == [number]
    assert completed(home, ["revoke"], "x") == []
    assert completed(home, ["group", "set"], "pa") == ["painters"]
    assert completed(home, ["group", "remove"], "") == ["agents", "painters"]
    assert completed(Path("/nowhere"), ["revoke"], "") == []
    assert completed(Path("/nowhere"), ["group", "set"], "") == []
    fine(home, "group", "remove", "painters")
    fine(home, "revoke", number)


def completed(home: Path, words: list[str], word: str) -> list[str]:
    complete = ShellComplete(cli, {}, "aios", "_AIOS_COMPLETE")
    return [item.value for item in complete.get_completions(["--home", str(home), *words], word)]


# --- in a terminal --------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[Open]:
    """`aios` in a terminal of its own."""
    opened = []

    def start(home: Path, *args: str) -> Any:
        env = environment(home) | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        opened.append(
            pexpect.spawn(AIOS[0], [*AIOS[1:], *args], env=env, timeout=LIMIT, encoding="utf-8",
                          dimensions=(40, 160))
        )  # fmt: skip
        return opened[-1]

    yield start
    for each in opened:
        each.close(force=True)


def interrupt(shell: Any) -> None:
    """Press Ctrl-C once the program sleeps: where CPython has written a prompt and does not wait in
    its select yet, a signal is first seen with the next key."""
    eventually(lambda: psutil.Process(shell.pid).status() == psutil.STATUS_SLEEPING)
    shell.sendcontrol("c")


def ended(shell: Any) -> int:
    shell.expect(pexpect.EOF)
    shell.close()
    return int(shell.exitstatus)


def test_ask_asks_until_it_is_answered(home: Path, asker: list[str], terminal: Open) -> None:
    asking = terminal(home, "policy", "ask")
    with started(home, "run", *asker) as agent:
        asking.expect_exact("asks for mem.put")
        asking.expect_exact("answer (once, agent, always, deny)")
        asking.sendline("maybe")
        asking.expect_exact("'maybe' is not one of")
        asking.expect_exact("answer (once, agent, always, deny)")
        asking.sendline("once")
        assert agent.wait(LIMIT) == 0
    with started(home, "run", *asker) as agent:
        asking.expect_exact("answer (once, agent, always, deny)")
        interrupt(asking)
        assert ended(asking) == 130
        with connect(home) as aios:  # nobody has answered
            aios.answer(next(aios.questions()).id, "deny")
        assert agent.wait(LIMIT) == 1


def test_run_asks_in_its_terminal(home: Path, asker: list[str], terminal: Open) -> None:
    asked = terminal(home, "run", *asker)
    asked.expect_exact("asks for mem.put")
    asked.expect_exact("answer (once, agent, always, deny)")
    asked.sendline("once")
    asked.expect_exact("done")
    assert ended(asked) == 0
    asked = terminal(home, "run", *asker)
    asked.expect_exact("answer (once, agent, always, deny)")
    interrupt(asked)
    assert ended(asked) == 130
    with connect(home) as aios:
        eventually(lambda: aios.ps() == [])


def test_run_leaves_the_questions_of_others(
    home: Path, asker: list[str], tmp_path: Path, terminal: Open
) -> None:
    """Its own child's it asks."""
    child = asker[0]
    (tmp_path / "above.toml").write_text('allow = ["msg", "proc"]\nask = ["mem.write"]')
    above = tmp_path / "above.py"
    above.write_text(
        "from aios.agents import Agent\n\n\nclass Above(Agent):\n    def run(self, task):\n"
        f"        return self.aios.wait(self.aios.spawn({child!r}, name='below')).result\n"
    )
    with started(home, "run", *asker, "--name", "stranger") as agent:
        with connect(home) as aios:
            stranger = next(aios.questions())
            asked = terminal(home, "run", str(above), "--manifest", str(tmp_path / "above.toml"))
            asked.logfile_read = said = io.StringIO()
            asked.expect_exact("| /above/below")
            asked.expect_exact("answer (once, agent, always, deny)")
            asked.sendline("once")
            asked.expect_exact("done")
            assert ended(asked) == 0
            assert "stranger" not in said.getvalue()
            aios.answer(stranger.id, "once")
        assert agent.wait(LIMIT) == 0


def test_the_shell_tells_what_waits(home: Path, asker: list[str], terminal: Open) -> None:
    shell = terminal(home)
    shell.expect_exact("\x1b[?2004h")
    with started(home, "run", *asker) as agent:
        shell.expect_exact("asks for mem.put")
        shell.expect(r"policy answer (\d+) once\|agent\|always\|deny")
        shell.sendline(f"policy answer {shell.match[1]} once")
        assert agent.wait(LIMIT) == 0
    shell.sendline("exit")  # kept for the prompt that is being drawn, which an end of file is not
    assert ended(shell) == 0


# --- the guide ------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.M | re.DOTALL)


def files() -> dict[str, str]:
    """The guide's blocks that begin with the name of a file."""
    named = {}
    for block in [*blocks("toml"), *blocks("python")]:
        found = re.match(r"# (\w+\.\w+)\n", block)
        assert found, block
        named[found[1]] = block
    return named


def test_every_command_of_the_guide_runs(
    homes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    lines = [line[2:] for block in blocks("console") for line in block.splitlines()]
    for name in COMMANDS:
        assert any(line.startswith(f"aios {name}") for line in lines), name
    for system in run_system(homes / "guide", {"slots": 1, "ctx": 256}):
        for line in lines:
            program, *args = shlex.split(line)
            done = run(system.home, *args)
            assert (program, done.returncode, done.stderr) == ("aios", 0, ""), (line, done)
        with connect(system.home) as aios:
            eventually(lambda: aios.ps() == [])
            assert aios.sto_get("notes", owner="/scout") == b"nothing"


def test_the_guide_s_rules_say_what_it_says_of_them() -> None:
    scout = msgspec.convert(tomllib.loads(files()["scout.toml"]), Manifest)
    msgspec.convert(tomllib.loads(files()["careful.toml"]), Group)
    layers = [rules_of("/scout", scout, {})]
    evaluator = RuleEvaluator({}, lambda _: None)

    def said(right: str, about: str, labels: list[str] | None = None, **args: Any) -> str:
        subject = Subject("/scout", layers, 1, frozenset(labels or []))
        return evaluator.decide(subject, AccessRequest(right, about, args=args), 0).effect

    assert said("sto.read", "/scout:a/b") == said("sto.read", "/library:papers/a") == "allow"
    assert said("sto.read", "/library:other") == said("sto.own", "/scout:a") == "deny"
    assert said("sto.write", "/scout:a") == "ask"
    assert said("msg.send", "/rival/x") == "deny"
    assert said("tool.call", "pay", to="rent@example.org", amount=50) == "allow"
    assert said("tool.call", "pay", to="rent@example.org", amount=51) == "ask"
    assert said("tool.call", "pay", to=["rent@example.org", "x@x"], amount=5) == "ask"
    assert said("tool.call", "send_mail", to="x@x") == "allow"
    assert said("tool.call", "send_mail", ["tool:search"], to="x@x") == "ask"
    assert said("tool.call", "send_mail", to=["x@x", "y@rival.example.org"]) == "deny"
    assert said("tool.call", "delete") == "deny"
