"""Small steps that many tests take."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from conftest import eventually

from aios.agents import Aios, Generation
from aios.syscalls.messages import ProcessInfo, Result

STORY = "Tell me a short story about a fox."
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 11, "ignore_eos": True}


def run(aios: Aios, prompt: Any = STORY, **options: Any) -> Result:
    return aios.generate(prompt, **{"max_tokens": 12, **options}).result()


def first_piece(generation: Generation) -> None:
    """Wait until it has begun to answer."""
    assert next(generation.pieces()).tokens


def row(aios: Aios, pid: int) -> ProcessInfo:
    return next(row for row in aios.ps(all=True) if row.pid == pid)


def running(aios: Aios, pid: int) -> ProcessInfo:
    """Its row, once it has said hello."""
    eventually(lambda: row(aios, pid).state == "running")
    return row(aios, pid)


def end(aios: Aios, pid: int) -> None:
    aios.kill(pid, "KILL")
    aios.wait(pid, timeout=10)


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "script"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)
