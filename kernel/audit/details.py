"""Describe in words what a call changes of rights: rules, limits, sandbox grants. Pure.

The arguments and tasks of programs are left out: they may hold secrets, and only their hash is
recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import UNSET, Struct
from msgspec.structs import asdict

from aios.syscalls import acc
from aios.syscalls.base import Message
from aios.syscalls.proc import NewLimits, SetLimits, Spawn
from aios.syscalls.rules import Manifest, Rule

from ..lib.patterns import quoted
from ..manifests import STRICTEST, in_words

PART_BYTES = 600  # of the text of one record
MAX_PARTS = 2  # of one call of an agent; a person's are not limited


def details(args: Message) -> str:
    """Describe the change that a call of a type in DESCRIBED makes, each part in brackets."""
    return " ".join(f"[{each}]" for each in DESCRIBED[type(args)](args) if each)


def parts(text: str, *, bound: bool) -> Iterator[str]:
    """Split a text into records; a bound text is cut to MAX_PARTS."""
    data = text.encode(errors="backslashreplace")
    most = MAX_PARTS * PART_BYTES if bound else len(data)
    for at in range(0, min(len(data), most), PART_BYTES):
        yield data[at : at + PART_BYTES].decode(errors="backslashreplace")
    if len(data) > most:
        yield f"... and {len(data) - most} bytes more"


def _rules(manifest: Manifest) -> Iterator[str]:
    """Yield a group's members, and each rule."""
    members = getattr(manifest, "members", None)
    if members is not None:
        yield f"members {' '.join(map(quoted, members))}"
    for effect in STRICTEST:
        for rule in getattr(manifest, effect):
            yield f"{effect} {_as_written(rule) if isinstance(rule, str) else in_words(rule)}"


def _as_written(rule: str) -> str:
    right, _, on = rule.partition(" ")
    return f"{right} {quoted(on.strip())}".rstrip()


def _fields(name: str, value: Struct | None) -> str:
    if value is None:
        return ""
    left_out: tuple[object, ...] = ([], False, UNSET)
    given = {field: each for field, each in asdict(value).items() if each not in left_out}
    return " ".join([name, *(f"{field}={_listed(each)}" for field, each in given.items())])


def _listed(value: object) -> str:
    return ",".join(quoted(str(each)) for each in (value if isinstance(value, list) else [value]))


def _group(args: acc.SetGroup) -> list[str]:
    return ["removed"] if args.group is None else [*_rules(args.group)]


def _grant(args: acc.Grant) -> list[str]:
    return [in_words(Rule(args.right, args.on, args.args)), f"seconds={args.seconds}"]


def _spawn(args: Spawn) -> list[str]:
    rules = [] if args.manifest is None else [*_rules(args.manifest)]
    return [*rules, *_limits(args), _fields("reach", args.reach)]


def _limits(args: Spawn | SetLimits) -> list[str]:
    return [] if args.limits == NewLimits() else [_fields("limits", args.limits)]


DESCRIBED: dict[type[Message], Callable[[Any], list[str]]] = {
    acc.SetGroup: _group, acc.Grant: _grant, Spawn: _spawn, SetLimits: _limits,
}  # fmt: skip
