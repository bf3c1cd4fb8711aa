"""Escaping of untrusted text for terminals and JSON. Pure.

Agents choose names, paths, arguments, results and log lines, and their models write without end. In
a terminal such a text could move the cursor, hide a part of itself, or draw what looks like a word
of the shell.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from rich.cells import chop_cells

from aios.syscalls.visible import is_visible

UNUSUAL = re.compile("[^ -~]+")  # runs that are looked at more closely


def shown(text: str, *, lines: bool = False) -> str:
    r"""Return `text` with all that is not plainly visible escaped, as `\x1b` or `\u202e`.

    That is: control characters, what changes the direction of a text, what has no width, private
    and unassigned characters, and line separators. With `lines` newlines and tabs stay: for texts
    that begin lines of their own.
    """
    return UNUSUAL.sub(lambda run: _escaped(run[0], "\n\t" if lines else ""), text)


def _escaped(text: str, kept: str) -> str:
    if is_visible(text):
        return text
    return "".join(c if c in kept or is_visible(c) else _code(c) for c in text)


def _code(char: str) -> str:
    return char.encode("unicode_escape").decode()


def brief(text: str, longest: int = 60) -> str:
    """Return `text` in one line of at most `longest` characters, cut at the end of a word."""
    line = shown(" ".join(text.split()))
    if len(line) <= longest:
        return line
    words = line[: longest - 2].rpartition(" ")[0]
    return (words if len(words) > longest // 2 else line[: longest - 3]).rstrip() + "..."


def hung(text: str) -> str:
    """Return `text` with its later lines indented: none of them looks like a line of the shell."""
    return shown(text, lines=True).replace("\n", "\n  ")


def folded(text: str, width: int, mark: str) -> list[str]:
    """Return `text` as lines of at most `width` columns that begin with `mark`; nothing is lost."""
    room = max(2, width - len(mark))
    lines = shown(text, lines=True).expandtabs(4).split("\n")
    return [mark + part for line in lines for part in chop_cells(line, room) or [""]]


def as_json_text(data: Any, indent: int = 2) -> str:
    r"""Write any reply of the ABI as JSON, with bytes as base64. An indent below 0: in one line.

    Characters that `shown` would escape are written as JSON's own `\uXXXX`, which loses nothing.
    """
    text = msgspec.json.format(msgspec.json.encode(data), indent=indent).decode()
    return UNUSUAL.sub(lambda run: "".join(map(_json_code, run[0])), text)


def _json_code(char: str) -> str:
    if char == "\n" or is_visible(char):  # no string has a newline
        return char
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
