"""What a call changes of who may do what, in words: rules, limits, what a process reaches. Pure.

Programs' arguments and tasks are not in it: these may hold secrets, and have their hash alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import asdict

from aios.syscalls import acc
from aios.syscalls.base import Message
from aios.syscalls.proc import SetLimits, Spawn
from aios.syscalls.rules import Manifest, Rule

from ..lib.patterns import quoted
from ..rules import STRICTEST, in_words

PART = 600  # bytes of one record's words
PARTS = 2  # records of one call of an agent, which may call without end; of a person's as many


def details(args: Message) -> str:
    """Return what is changed, each part in brackets; empty for a call that changes nothing so."""
    match args:
        case acc.SetGroup():
            found = ["removed"] if args.group is None else [*_rules(args.group)]
        case acc.Grant():
            found = [in_words(Rule(args.right, args.on, args.args)), f"seconds={args.seconds}"]
        case Spawn():
            found = [] if args.manifest is None else [*_rules(args.manifest)]
            found += [_fields("limits", args.limits), _fields("reach", args.reach)]
        case SetLimits():
            found = [_fields("limits", args.limits)]
        case _:
            return ""
    return " ".join(f"[{each}]" for each in found if each)


def parts(text: str, *, bound: bool) -> Iterator[str]:
    """The records that a text takes; of more than it may take, the beginning."""
    data = text.encode(errors="backslashreplace")
    most = PARTS * PART if bound else len(data)
    for at in range(0, min(len(data), most), PART):
        yield data[at : at + PART].decode(errors="backslashreplace")
    if len(data) > most:
        yield f"... and {len(data) - most} bytes more"


def _rules(manifest: Manifest) -> Iterator[str]:
    """Its members, where it is a group, and each of its rules."""
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
    given = {field: each for field, each in asdict(value).items() if each not in ([], False)}
    return " ".join([name, *(f"{field}={_listed(each)}" for field, each in given.items())])


def _listed(value: object) -> str:
    return ",".join(quoted(str(each)) for each in (value if isinstance(value, list) else [value]))
