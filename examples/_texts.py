"""Tasks of the agents that ship, and the texts that they name: `aios run summarize notes.txt`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from aios.agents import Agent

ALICE = Path(__file__).with_name("alice.txt")
PIECE_BYTES = 800  # about: of longer pieces the model keeps only the beginning
MAX_PART_BYTES = 2 * PIECE_BYTES  # as many tokens fit into a context, whatever they are
GAPS = (r"(?<=\n)(?=\s*\n)", r"(?<=[.!?])(?=\s)", r"(?=\s)", "")  # the last: anywhere

T = TypeVar("T")


def as_task(agent: Agent, task: Any, kind: type[T], field: str = "") -> T:
    """Return `task`, or what is left out of it, as a `kind`; a text alone is its `field`.

    Raises:
        SystemExit: it is none; why, and what the agent takes, as its docstring says.
    """
    if field and isinstance(task, str):
        task = {field: task}
    try:
        return msgspec.convert({} if task is None else task, kind)
    except msgspec.ValidationError as error:
        sys.exit(f"{agent.name} cannot do this task: {error}\n{usage(agent)}")


def usage(agent: Agent) -> str:
    """Return the first paragraph of the agent's docstring, which says what its task is."""
    return " ".join((type(agent).__doc__ or "").partition("\n\n")[0].split())


def read_text(path: str | Path) -> str:
    """Return the text in the file `path`.

    Raises:
        SystemExit: it cannot be read, or holds nothing; why, in one line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        sys.exit(f"cannot read {path}: {error.strerror}")
    except ValueError:
        sys.exit(f"cannot read {path}: it is no text in UTF-8")
    if not text.strip():
        sys.exit(f"{path} is empty")
    return text


def cut(text: str, wanted: int | None = None) -> list[str]:
    """Cut `text` into at most `wanted` pieces of about the same length, or into so many that each
    is short: between paragraphs if these are short enough, else between sentences, else words."""
    for gap in GAPS:
        parts = [part for part in re.split(gap, text.strip()) if part]
        sizes = [len(part.encode()) for part in parts]
        count = wanted or max(1, round(sum(sizes) / PIECE_BYTES))
        if len(parts) >= count and max(sizes) <= MAX_PART_BYTES:
            break
    pieces: list[list[str]] = [[] for _ in range(count)]
    begin = 0
    for part, size in zip(parts, sizes, strict=True):
        pieces[int((begin + size / 2) * count / sum(sizes))].append(part)
        begin += size
    return [" ".join("".join(piece).split()) for piece in pieces if piece]
