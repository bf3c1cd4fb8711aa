"""Every example of every `--help` is run, or parsed where running it takes a person or minutes; and
all of it fits a terminal of 80 columns."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commands import AIOS, LEAVES, LIMIT, environment, every_command
from conftest import eventually, run_system
from helpers import end_agents
from models import tiny_model

from aios.agents import Aios, connect
from aios.shell.cli import cli, execute
from aios.syscalls.errors import ProcessGone
from aios.syscalls.rules import Group

ECHO = """
from aios.agents import Agent


class Echo(Agent):
    def run(self, task):
        while task is None:
            mail = self.aios.recv()
            self.aios.open(name="diary").close()
            self.aios.send(mail.sender, "heard")
        return task
"""
# The beginnings of examples that are parsed alone: they follow something until Ctrl-C, ask a
# person, begin or end a system, or take minutes. Each command has tests of its own.
PARSED = (
    "aios start", "aios stop", "aios --home", "aios events", "aios logs -f", "aios audit tail -f",
    "aios policy ask", "aios policy answer", "aios key rotate", "aios model fit",
    "aios model forget", "aios mcp", "aios demo", "aios bench",
)  # fmt: skip

AGENTS = ("writer", "helper", "one", "two")
SHELL = ("aios", "aios generate - --max-tokens 40 --json < question.txt")


def examples(command: click.Command) -> list[str]:
    text = f"{command.help}\n{command.epilog or ''}"
    found = re.search(r"Examples?:\n((?: +(?:aios|echo).*\n)+)", text)
    lines = found[1].splitlines() if found else []
    return [re.split(r"   +", line.strip())[0] for line in lines]


ALL = [*dict.fromkeys(line for _, command in every_command() for line in examples(command))]


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in every_command()]
)
def test_every_command_has_examples_of_itself(
    path: tuple[str, ...], command: click.Command
) -> None:
    lines = examples(command)
    assert lines
    assert any(" ".join(path) in line for line in lines)


# These print a content or a talk; a server's words are not for a person.
SPOKEN = {("audit", "export"), ("chat",), ("mcp",), ("mem", "export"), ("sto", "get")}


def test_every_command_answers_in_json() -> None:
    silent = {
        path
        for path, command in every_command()
        if not isinstance(command, click.Group)
        and not any("--json" in option.opts for option in command.params)
    }
    assert silent == SPOKEN


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in every_command()]
)
def test_help_has_each_choice_in_one_piece(
    path: tuple[str, ...], command: click.Command,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    assert execute([*path, "--help"]) == 0
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out.lower()))
    for parameter in command.params:
        if isinstance(parameter.type, click.Choice):
            assert words.issuperset(str(choice).lower() for choice in parameter.type.choices)


@pytest.mark.parametrize("path", [path for path, _ in every_command()], ids=" ".join)
def test_help_fits_80_columns_and_cuts_no_sentence(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert execute([*path, "--help"]) == 0
    usage, *lines = capsys.readouterr().out.splitlines()
    assert len(usage) <= 80
    for line in lines:
        assert len(line) <= 80
        assert not re.search(r"\w\.\.\.$", line), "a summary is cut"


# --- they are run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that examples name."""
    folder = tmp_path_factory.mktemp("help")
    (folder / "echo.py").write_text(ECHO)
    (folder / "my_agent.py").write_text(ECHO)
    for name in ("notes.txt", "plan.md", "list.txt", "question.txt", "model.gguf", "aios.key"):
        (folder / name).write_text("Why is the sky blue?\n")
    (folder / "agents.toml").write_text('allow = ["*"]\n')
    (folder / "careful.toml").write_text('members = ["/scout"]\ndeny = ["proc.spawn"]\n')
    (folder / "mine.json").write_text("[]")
    (folder / "bin").mkdir()
    (folder / "bin" / "aios").write_text(f'#!/bin/sh\nexec {shlex.join(AIOS)} "$@"\n')
    (folder / "bin" / "aios").chmod(0o755)
    (folder / "notes").mkdir()
    return folder


@pytest.fixture(scope="module")
def home(homes: Path, folder: Path) -> Iterator[Path]:
    settings = {"slots": 2, "ctx": 1024, "grace": 0.5}
    for system in run_system(homes / "help", settings):
        yield system.home


@pytest.fixture(scope="module")
def aios(home: Path) -> Iterator[Aios]:
    with connect(home, "test") as aios:
        yield aios
        end_agents(aios)


def prepared(line: str, aios: Aios, home: Path, folder: Path) -> dict[str, str]:
    """Make what examples speak of, where it is not there; what stands for their numbers."""
    alive = {row.name: row.pid for row in aios.ps() if row.state in ("starting", "running")}
    for row in aios.ps():
        if not row.tool and (row.name not in AGENTS or alive.get(row.name) != row.pid):
            with contextlib.suppress(ProcessGone):  # it has ended by itself meanwhile
                aios.kill(row.pid, "KILL")  # but no worker, which the next call may wait for
    for name in AGENTS:
        if name not in alive:
            alive[name] = aios.spawn(str(folder / "echo.py"), name=name)
    for path in ("notes/plan.md", "notes/milk", "photo"):
        if len([*aios.sto_list(path)]) == 0 or len([*aios.sto_history(path)]) < 3:
            for text in ("one\n", "two\n", "three\n"):
                aios.sto_put(path, text)
    aios.mem_put({"style": "short", "limits": 1}, principal="/writer")
    if "--forget" in line:
        aios.send(alive["writer"], "open your diary")
        aios.recv(alive["writer"], timeout=LIMIT)
    groups = aios.groups()
    aios.set_group("readers", Group(members=["/scout"]))
    groups["agents"].ask = ["proc.spawn"] if "group remove agents" in line else []
    aios.set_group("agents", groups["agents"])
    (folder / "audit.key").write_text((home / "audit" / "key").read_text())
    key = ("x" if "ann" in line else "y") * 40
    return {
        r"\b12\b": str(alive["one"]), r"\b13\b": str(alive["two"]), r"\b4711\b|\b4000\b": "1",
        r"(?<=revoke )3": str(aios.grant("/spare", "llm")), "PUBLIC KEY": key,
        r"--if-version 1": f"--if-version {next(iter(aios.sto_list('notes/milk'))).version}",
        "/backups/monday": str(folder / "monday"), "/other": str(home), "~/notes": "notes",
    }  # fmt: skip


def outcome(line: str) -> set[int]:
    """The exit codes that an example may have: `wait` gives that of the agent, and what no rule
    allows is told by a code as well."""
    if line.startswith("aios wait"):
        return {143}
    return {0, 1} if line.startswith("aios policy check") else {0}


@pytest.mark.parametrize("line", [line for line in ALL if not line.startswith(PARSED)])
def test_an_example_runs(
    line: str, home: Path, aios: Aios, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    concrete = line
    for pattern, value in prepared(line, aios, home, folder).items():
        concrete = re.sub(pattern, value, concrete)
    if line.startswith("aios wait"):
        for row in aios.ps():
            aios.kill(row.pid)
    if "proof" in line:
        monkeypatch.setenv("AIOS_HOME", str(home))
        eventually(lambda: execute(["audit", "prove", "1"]) == 0)  # once it is signed
        with (folder / "record.tlog-proof").open("w") as proof:
            subprocess.run([*AIOS, "audit", "prove", "1"], stdout=proof, check=True)
    if re.search(r"[|<>$&]|chat", concrete.replace("'2**64'", "")) or line in SHELL:
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", concrete], env=environment(home) | {"PATH": path}, cwd=folder,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        code, errors = done.returncode, done.stderr
    else:
        code = execute(["--home", str(home), *shlex.split(concrete)[1:]])
        errors = capfd.readouterr().err
    assert code in outcome(line), errors
    if line.startswith(("aios wait", "aios kill writer")):  # they may take a while to end
        gone = AGENTS if "wait" in line else ("writer",)
        eventually(lambda: not any(row.name in gone for row in aios.ps()))


# --- they are parsed -----------------------------------------------------------------------------


@pytest.mark.parametrize("line", [line for line in ALL if line.startswith(PARSED)])
def test_an_example_is_parsed(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for _, command in LEAVES:
        monkeypatch.setattr(command, "callback", lambda *_, **__: 0)
    for part in line.replace("~/notes", "notes").replace("/media/stick/", "").split(" && "):
        assert execute(shlex.split(part)[1:]) == 0


def test_the_first_example_of_all_runs(homes: Path, folder: Path) -> None:
    first = examples(cli)[0]
    assert first == "aios start --detach && aios run summarize notes.txt && aios stop"
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    home = homes / "first"
    home.mkdir()
    (home / "config.toml").write_text(f'model = "{tiny_model(home / "tiny.gguf")}"\n')
    done = subprocess.run(
        ["bash", "-c", first], env=environment(home) | {"PATH": path}, cwd=folder,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"summary"' in done.stdout
