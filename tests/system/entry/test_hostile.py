"""An agent writes escape sequences into every field it can, and every command of the shell is run
on it: nothing of that reaches the terminal."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from click.shell_completion import get_completion_class
from commands import AIOS, LEAVES, LIMIT, environment, started
from conftest import run_system
from helpers import end_agents
from hostile import EVIL, RAW
from places import SUPPORT

from aios.agents import Aios, connect
from aios.shell.cli import cli
from aios.shell.escape import shown

AGENT = str(SUPPORT / "hostile.py")
HIDDEN = {char for char in EVIL if shown(char) != char} - {"\x1b"}
# The shell itself sends: bold and the like, the cursor up and down, a line cleared.
OWN = re.compile(r"\x1b\[(?:[0-9]?[0-9]?m|1;[0-9]+m|\?(?:7|12|25|2004)[lh]|[0-9]*[ABCDGJK])")
MANIFEST = 'allow = ["*"]\n[[ask]]\nright = "mem.write"\n'
GRAMMAR = r'root ::= "\x1b[38;5;199m\u202e\u200b" [a-z]'

# Every command, with what makes it print what the agent wrote. Pids are put in at the run.
LINES = """
status
stats
ps
ps -l --workers
ps --all --tree
agents
contexts
contexts --forget hostile/none
logs {stay}
logs -n 3 {ended}
logs kernel
logs init
wait {ended}
nice 3 {stay}
kill -s STOP nobody
send {stay} hello --wait 30
chat {stay}
events process -n 1
sched
check
mem list
mem list {stay}
mem get {stay} plain
mem get {stay} bytes
mem get {stay} {evil_key}
mem put {stay} mine text
mem log {stay}
mem keep {stay}
mem export {stay}
mem import /copy nothing.mem
mem delete {stay} mine
mem clear /none
mem forget /none
sto list --all
sto list notes --owner /hostile
sto get notes/plain --owner /hostile
sto get notes/plain --version 1 --owner /hostile
sto put notes/plain plain.txt --owner /hostile
sto history notes/plain --owner /hostile
sto diff notes/plain 1 2 --owner /hostile
sto share
sto share --owner /hostile
sto search evil --fresh --mode words
sto index
sto verify
sto compact
sto rollback notes/plain 1 --owner /hostile
sto delete notes/none --owner /hostile
sto purge notes/none --yes --owner /hostile
sto export objects.tar --owner /hostile
sto import objects.tar
sto backup backup
tool list
tool show evil.say
tool call evil.say text={evil}
tool call evil.fail text={evil}
group list
group set far --member '/x' --allow 'msg.send /x'
group remove far --rule {evil}
grants
grant /x llm
revoke 999
policy check {stay} tool {evil} --explain
policy answer 999 once
audit tail -n 500
audit search --agent /hostile
audit export -
audit show 3
audit verify
audit prove 3
key new spare
key list
key allow spare {evil_key}
key remove spare
model show
generate {evil} --max-tokens 4
generate Say --grammar {grammar}
run {agent}
run {agent} fail
spawn {agent}
bench nothing
"""
ELSEWHERE = {  # where no agent's words are shown, or in a test of its own
    "start", "stop", "demo", "mcp", "model fit", "model forget", "key rotate", "policy ask",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(homes: Path) -> Iterator[Path]:
    settings: dict[str, Any] = {"slots": 2, "ctx": 512, "tools": {"evil": {"program": AGENT}}}
    for system in run_system(homes / "hostile", settings):
        yield system.home


@pytest.fixture(scope="module")
def aios(home: Path) -> Iterator[Aios]:
    with connect(home, "test") as aios:
        yield aios


@pytest.fixture(scope="module")
def pids(aios: Aios) -> Iterator[dict[str, int]]:
    """One that has ended, one that stays and answers."""
    ended = aios.spawn(AGENT, manifest={"allow": ["*"]})
    aios.wait(ended, timeout=LIMIT)
    stay = aios.spawn(AGENT, "stay", manifest={"allow": ["*"]})
    aios.send(stay, "are you there?")
    while aios.recv(stay, timeout=LIMIT).body == EVIL:
        pass
    yield {"ended": ended, "stay": stay}
    end_agents(aios)


def harmless(said: str) -> None:
    """Nothing in it is the agent's but what can be seen."""
    rest = OWN.sub("", said)
    assert "\x1b" not in rest, repr(rest[max(0, rest.index("\x1b") - 200) :][:300])
    assert not HIDDEN & set(rest), {hex(ord(char)) for char in HIDDEN & set(rest)}


def in_terminal(home: Path, lines: str, cwd: Path) -> str:
    """Return what those commands of the shell print in a terminal of 80 columns."""
    master, slave = pty.openpty()
    said = b""

    def read() -> None:
        nonlocal said
        try:
            while data := os.read(master, 65536):
                said += data
        except OSError:  # the end of a terminal
            pass

    reader = threading.Thread(target=read)
    reader.start()
    env = environment(home) | {"TERM": "xterm", "COLUMNS": "80"}
    try:
        subprocess.run(
            AIOS, input=lines.encode(), stdout=slave, stderr=slave, env=env, cwd=cwd, check=False,
            timeout=300,
        )  # fmt: skip
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    return said.decode()


def test_every_command_is_tried() -> None:
    lines = [f"{line} " for line in LINES.strip().splitlines()]
    commands = {" ".join(path) for path, _ in LEAVES}
    tried = {each for each in commands if any(line.startswith(f"{each} ") for line in lines)}
    assert commands == tried | ELSEWHERE


def test_files_and_pipes_get_the_bytes(home: Path, pids: dict[str, int]) -> None:
    got = subprocess.run(
        [*AIOS, "mem", "get", str(pids["stay"]), "bytes"], env=environment(home),
        capture_output=True, check=True,
    )  # fmt: skip
    assert got.stdout == RAW


def test_no_command_passes_on_what_an_agent_wrote(
    home: Path, aios: Aios, pids: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "plain.txt").write_text("plain")
    (tmp_path / "nothing.mem").write_text(EVIL)
    words = {
        "agent": AGENT, "evil": EVIL, "evil_key": EVIL[:90], "grammar": GRAMMAR,
        **{name: str(pid) for name, pid in pids.items()},
    }  # fmt: skip
    quoted = {name: shlex.quote(word) for name, word in words.items()}
    lines = [line.format(**quoted) for line in LINES.strip().splitlines()]
    slow = ("chat", "events", "run", "spawn", "generate", "tool call", "sto backup")
    with_json = [f"{line} --json" for line in lines if not line.startswith(slow)]
    said = in_terminal(home, "\n".join([*lines, *with_json, ""]), tmp_path)
    harmless(said)
    assert "\\x1b[38;5;199m" in said and "\\u001b[38;5;199m" in said
    assert said.count("\\u202e") > 100
    harmless(in_terminal(home, "\n".join(f"{line} &" for line in lines[:12]), tmp_path))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_nothing_of_that(
    shell: str, home: Path, pids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_HOME", str(home))
    kind = get_completion_class(shell)
    assert kind is not None
    said = ""
    for words in ("aios kill ", "aios kill h", "aios tool call ", "aios tool call evil"):
        monkeypatch.setenv("COMP_WORDS", words)
        at = words.split(" ")[-1] if shell == "fish" else str(words.count(" "))
        monkeypatch.setenv("COMP_CWORD", at)
        said += kind(cli, {}, "aios", "_AIOS_COMPLETE").complete()
    assert "evil.say" in said and str(pids["stay"]) in said
    harmless(said)


def test_a_question_cannot_be_forged(
    home: Path, aios: Aios, tmp_path: Path, pids: dict[str, int]
) -> None:
    manifest = tmp_path / "evil.toml"
    manifest.write_text(MANIFEST)
    env = environment(home) | {"TERM": "xterm", "COLUMNS": "80"}
    asked = pexpect.spawn(
        AIOS[0], [*AIOS[1:], "policy", "ask", "-n", "1"], env=env, timeout=LIMIT,
        encoding="utf-8", dimensions=(60, 80),
    )  # fmt: skip
    shell = pexpect.spawn(
        AIOS[0], AIOS[1:], env=env | {"PROMPT_TOOLKIT_NO_CPR": "1"}, timeout=LIMIT,
        encoding="utf-8", dimensions=(60, 120),
    )  # fmt: skip
    shell.expect_exact("\x1b[?2004h")
    with started(home, "run", AGENT, "ask", "--manifest", str(manifest)):
        asked.sendline("once")  # typed before the question: it is no answer to it
        asked.expect(r"question \d+: process \d+ asks for mem\.put")
        asked.expect_exact("answer (once, agent, always, deny)")
        question = asked.before
        shell.expect_exact("asks for mem.put")
        shell.expect_exact("policy answer")
        told = shell.before
        harmless(question + told)
        assert "| " in question and "\\u001b[38;5;199m" in question + told
        with connect(home, "other") as other:
            assert next(other.questions()).call == "mem.put"  # it still waits
        asked.sendline("deny")
        asked.expect(pexpect.EOF)
    for each in (asked, shell):
        each.close(force=True)
