"""Words that bash completes: commands, pids, names, programs."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from commands import AIOS, environment, run
from helpers import UNTIL_TOLD

from aios.agents import Aios
from aios.agents.runtime.runner import registered
from aios.shell.launch import System

Program = Callable[[str], str]


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
    assert complete("aios sched f", 2) == ["fair", "fifo"]
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
