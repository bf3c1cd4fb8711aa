"""Patterns of rules: parsed, and matched in linear time. Pure.

A pattern is literals with wildcards between them. Matching never backtracks. Literals between two
`**` are taken at their first match, and the last part at the end of the text. A literal after a `*`
is taken at its first match too: wherever that is, the next "/" or ":" is the same. Where a part
fails, the search goes on behind the next "/" or ":".
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from aios.syscalls.errors import BadInput, Denied
from aios.syscalls.visible import is_visible

SELF = "{self}"
MAX_WILDCARDS = 16  # of one pattern, with SELF
CACHED_PATTERNS = 1024  # each may have 4 KB in the place of SELF
MAX_STEPS = 50_000  # for the rules of one call, about a twentieth of a second
LETTERS_PER_STEP = 64

TOKEN = re.compile(r"\\.|/\*\*\Z|\*\*|\*|\{self\}|[^*{\\/]+|[/{\\]", re.DOTALL)
WILD = re.compile(r"[*{\\]")
BARRIER = re.compile("[/:]")
SEVERAL = re.compile(r'[\s",;\[\]]')

Group = tuple[str, ...]  # literals with a `*` between them


class TooLong(Denied):
    """The rules about a call take more steps than one call has."""


class Effort:
    """The steps that are left for one call to match rules."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps

    def spend(self, steps: int = 1, letters: int = 0) -> None:
        """Count steps. Raises TooLong when none are left."""
        self.left -= steps + letters // LETTERS_PER_STEP
        if self.left < 0:
            raise TooLong(
                "there are too many rules and arguments to look at for one call",
                "shorten the arguments, or the manifests: see docs/access.md",
                "too many rules and arguments",
            )


def matches(pattern: str, text: str, me: str = "", effort: Effort | None = None) -> bool:
    """Tell whether the pattern matches all of `text`; `{self}` in it is `me`."""
    effort = effort or Effort()
    effort.spend()
    if pattern == "**":
        return True
    found = parsed(pattern, me if SELF in pattern else "")
    return any(_fits(groups, text, effort) for groups in found)


def check_visible(what: str, text: str) -> None:
    """Refuse a name or pattern with invisible characters, as control or direction characters.

    People decide by what they read. Raises BadInput.
    """
    if not is_visible(text):
        raise BadInput(
            f"{what} has characters that do not show: {ascii(text)[:200]}",
            "leave them out; in a pattern `*` and `**` stand for any",
        )


def quoted(text: str) -> str:
    """Quote a text that somebody else chose, if it could be read as several words."""
    return text if not SEVERAL.search(text) else json.dumps(text, ensure_ascii=False)


def check_pattern(pattern: str) -> None:
    """Refuse a pattern with too many wildcards or invisible characters. Raises BadInput."""
    check_visible("a pattern", pattern)
    stars = sum(token in ("*", "**", "/**", SELF) for token in TOKEN.findall(pattern))
    if stars > MAX_WILDCARDS:
        raise BadInput(
            f"a pattern has {stars} wildcards, and {MAX_WILDCARDS} at most: {pattern[:64]!r}",
            "write several patterns",
        )


def literal(pattern: str, me: str) -> str:
    """Return the text that everything begins with that the pattern matches."""
    return WILD.split(pattern.replace(SELF, me), maxsplit=1)[0]


def exactly(text: str) -> str:
    """Return a pattern that matches this text alone, or anything if the text is empty."""
    return re.sub(r"([\\*{])", r"\\\1", text) or "**"


@lru_cache(CACHED_PATTERNS)
def parsed(pattern: str, me: str) -> list[list[Group]]:
    """Parse a pattern into alternatives, each a list of groups with a `**` between each two."""
    groups = [[""]]
    for token in TOKEN.findall(pattern):
        if token == "**":
            groups.append([""])
        elif token == "*":
            groups[-1].append("")
        elif token == "/**":
            below = [*groups[:-1], [*groups[-1][:-1], groups[-1][-1] + "/"], [""]]
            return [[tuple(group) for group in each] for each in (groups, below)]
        else:
            plain = me if token == SELF else token[1:] or token if token[0] == "\\" else token
            groups[-1][-1] += plain
    return [[tuple(group) for group in groups]]


def _fits(groups: list[Group], text: str, effort: Effort) -> bool:
    first, *middle, last = groups if len(groups) > 1 else [(), *groups]
    if not first:
        return _is_all(last, text, effort)
    at = _end(first, text, effort)
    length = _end(tuple(part[::-1] for part in reversed(last)), text[::-1], effort)
    if at < 0 or length < 0:
        return False
    text = text[: len(text) - length] if length else text
    for group in middle:
        at = _find(group, text, at, effort)
        if at < 0:
            return False
    return at <= len(text)


def _is_all(group: Group, text: str, effort: Effort) -> bool:
    """Tell whether a group matches all of the text."""
    *begin, last = group
    if not begin:
        return text == last
    at, start = _end(tuple(begin), text, effort), len(text) - len(last)
    return 0 <= at <= start and text.endswith(last) and _barrier(text, at, effort) >= start


def _end(group: Group, text: str, effort: Effort) -> int:
    """Return the earliest end of a group at the beginning of the text, or -1."""
    if not text.startswith(group[0]):
        return -1
    return _follow(group, text, len(group[0]), effort)


def _find(group: Group, text: str, at: int, effort: Effort) -> int:
    """Return the end of the first match of a group at `at` or behind, or -1."""
    while True:
        start = text.find(group[0], at)
        effort.spend(letters=(len(text) if start < 0 else start) - at)
        if start < 0:
            return -1
        end = _follow(group, text, start + len(group[0]), effort)
        if end >= 0:
            return end
        at = _barrier(text, start, effort) + 1


def _follow(group: Group, text: str, at: int, effort: Effort) -> int:
    """Return the end of a group whose first literal ends at `at`, or -1."""
    for part in group[1:]:
        at_most = _barrier(text, at, effort)
        start = text.find(part, at, at_most + len(part))
        if start < 0:
            return -1
        at = start + len(part)
    return at


def _barrier(text: str, at: int, effort: Effort) -> int:
    """Return the position of the next "/" or ":", which no `*` passes, or the end of the text."""
    found = BARRIER.search(text, at)
    end = len(text) if found is None else found.start()
    effort.spend(letters=end - at)
    return end
