"""Patterns of rules: parsed, and matched in a time that grows with the text alone. Pure.

A pattern is literals with wildcards between them. Two `**` never have to be tried together: what
stands between them is taken where it ends first, and the last part where it begins last. The same
holds of `*`: whichever place a literal is taken at, the next "/" or ":" is the same one. So nothing
is ever tried again, and where a part fails, the search goes on behind the next "/" or ":".
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from aios.syscalls.errors import BadInput, Denied
from aios.syscalls.visible import is_visible

SELF = "{self}"
STARS = 16  # wildcards of one pattern, and SELF
PARSED = 1024  # patterns that are kept; one may have 4 KB in the place of each SELF
EFFORT = 200_000  # steps that the rules of one call may take, about a fifth of a second
LETTERS = 64  # that are looked at in one step

TOKEN = re.compile(r"\\.|/\*\*\Z|\*\*|\*|\{self\}|[^*{\\/]+|[/{\\]", re.DOTALL)
WILD = re.compile(r"[*{\\]")
BARRIER = re.compile("[/:]")
SEVERAL = re.compile(r'[\s",;\[\]]')

Group = tuple[str, ...]  # literals with a `*` between each two


class TooLong(Denied):
    """The rules about a call take more steps than one call has."""


class Effort:
    """The steps that are left to look at rules in, for one call."""

    def __init__(self, steps: int = EFFORT) -> None:
        self.left = steps

    def spend(self, steps: int = 1, letters: int = 0) -> None:
        """Raises TooLong where there are no more."""
        self.left -= steps + letters // LETTERS
        if self.left < 0:
            raise TooLong(
                "there are too many rules and arguments to look at for one call",
                "shorten the arguments, or the manifests: see docs/access.md",
                "too many rules and arguments",
            )


def matches(pattern: str, text: str, me: str = "", effort: Effort | None = None) -> bool:
    """Whether all of `text` is what the pattern says; `{self}` in it is `me`."""
    effort = effort or Effort()
    effort.spend()
    if pattern == "**":
        return True
    found = parsed(pattern, me if SELF in pattern else "")
    return any(_fits(groups, text, effort) for groups in found)


def check_visible(what: str, text: str) -> None:
    """Raises BadInput for a name or a pattern that holds more than it shows, as by control
    characters, or by what turns the direction of a text: people decide by what they read."""
    if not is_visible(text):
        raise BadInput(
            f"{what} has characters that do not show: {ascii(text)[:200]}",
            "leave them out; in a pattern `*` and `**` stand for any",
        )


def quoted(text: str) -> str:
    """Return a text that somebody else chose as it stands among other words: in quotes where it
    could be read as several, or as the end of what it is in."""
    return text if not SEVERAL.search(text) else json.dumps(text, ensure_ascii=False)


def check_pattern(pattern: str) -> None:
    """Raises BadInput for one with too many wildcards, or with what does not show."""
    check_visible("a pattern", pattern)
    stars = sum(token in ("*", "**", "/**", SELF) for token in TOKEN.findall(pattern))
    if stars > STARS:
        raise BadInput(
            f"a pattern has {stars} wildcards, and {STARS} at most: {pattern[:64]!r}",
            "write several patterns",
        )


def literal(pattern: str, me: str) -> str:
    """What each text begins with that the pattern fits."""
    return WILD.split(pattern.replace(SELF, me), maxsplit=1)[0]


def exactly(text: str) -> str:
    """A pattern that fits this text alone; where it is empty, anything."""
    return re.sub(r"([\\*{])", r"\\\1", text) or "**"


@lru_cache(PARSED)
def parsed(pattern: str, me: str) -> list[list[Group]]:
    """One of these fits: each has groups with a `**` between each two."""
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
    """Whether all of the text is the group."""
    *begin, last = group
    if not begin:
        return text == last
    at, start = _end(tuple(begin), text, effort), len(text) - len(last)
    return 0 <= at <= start and text.endswith(last) and _barrier(text, at, effort) >= start


def _end(group: Group, text: str, effort: Effort) -> int:
    """Where the group ends that the text begins with, at the earliest; -1: it does not."""
    if not text.startswith(group[0]):
        return -1
    return _follow(group, text, len(group[0]), effort)


def _find(group: Group, text: str, at: int, effort: Effort) -> int:
    """Where the first such group ends that begins at `at` or behind; -1: there is none."""
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
    """Where the rest of a group ends whose first literal ends at `at`; -1: it is not there."""
    for part in group[1:]:
        at_most = _barrier(text, at, effort)
        start = text.find(part, at, at_most + len(part))
        if start < 0:
            return -1
        at = start + len(part)
    return at


def _barrier(text: str, at: int, effort: Effort) -> int:
    """Where the next "/" or ":" is, which no `*` goes over; else the end of the text."""
    found = BARRIER.search(text, at)
    end = len(text) if found is None else found.start()
    effort.spend(letters=end - at)
    return end
