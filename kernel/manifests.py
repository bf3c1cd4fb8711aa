"""The rules of manifests and groups: checked, put into words, and gathered for an agent. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from aios.syscalls.errors import BadInput
from aios.syscalls.rules import Argument, Bounds, Effect, Group, Manifest, Rule
from aios.syscalls.table import RIGHTS

from .lib.patterns import check_pattern, check_visible, quoted

AGENTS = "agents"  # the group of all agents that have no manifest
DEFAULT = Group(
    allow=[
        "proc", "llm", "msg", "mem", "sto.read", "sto.write", "sto.upload", "sto.own", "acc.read",
        "acc.grant", "kernel.read", "tool.list",
        *(f"tool.call {name}" for name in (
            "calculate", "files.*", "image.*", "python", "search", "sql.*", "time.*",
        )),
    ],
)  # fmt: skip
ALL = ["**"]  # objects
STRICTEST: tuple[Effect, ...] = ("deny", "ask", "allow")
MAX_RULES, MAX_PATTERNS = 256, 1024  # of one manifest or group
MAX_PRINCIPAL_CHARS = 80  # of a principal in the words of each of its rules


class SourcedRule(NamedTuple):
    """A rule with its effect; `text` says in words where it is written and what it is."""

    effect: Effect
    rule: Rule
    text: str


def names_of(principal: str) -> frozenset[str]:
    """Return the names by which a grant or a group can mean this agent; a person has none."""
    if not principal:
        return frozenset()
    above = accumulate(principal.split("/")[:-1], lambda path, name: f"{path}/{name}")
    return frozenset({principal, *(f"{path}/*" for path in above)})


def groups_of(principal: str, groups: Mapping[str, Group]) -> set[str]:
    names = names_of(principal)
    return {name for name, group in groups.items() if names.intersection(group.members)}


def rules_of(
    principal: str, manifest: Manifest | None, groups: Mapping[str, Group]
) -> list[SourcedRule]:
    """Return one layer: the rules of an agent's own manifest and groups."""
    found: list[SourcedRule] = []
    if manifest is not None:
        shown = principal
        if len(principal) > MAX_PRINCIPAL_CHARS:
            shown = "..." + principal[3 - MAX_PRINCIPAL_CHARS :]
        found += written(f"manifest of {shown}", manifest)
    member = groups_of(principal, groups) | ({AGENTS} if manifest is None else set())
    for name in sorted(member):
        found += written(f"group {name}", groups[name])
    return found


def written(source: str, manifest: Manifest) -> Iterator[SourcedRule]:
    for effect in STRICTEST:
        for each in getattr(manifest, effect):
            rule = as_rule(each)
            yield SourcedRule(effect, rule, f"{source}: {effect} {in_words(rule)}")


def as_rule(rule: Rule | str) -> Rule:
    """Parse a rule that is a string. Raises BadInput."""
    if isinstance(rule, Rule):
        return rule
    right, _, on = rule.partition(" ")
    if not re.fullmatch(r"\*|[a-z]+(\.[a-z]+)*", right):
        raise BadInput(f"no rule: {rule!r}", 'write "RIGHT" or "RIGHT OBJECT": see docs/access.md')
    return Rule(right, [on.strip()] if on.strip() else ALL)


def check_rules(manifests: Iterable[Manifest]) -> None:
    """Raise BadInput where a rule of these is malformed, or one has too many rules."""
    for manifest in manifests:
        rules = [named.rule for named in written("", manifest)]
        patterns = [pattern for rule in rules for pattern in patterns_of(rule)]
        if len(rules) > MAX_RULES or len(patterns) > MAX_PATTERNS:
            raise BadInput(
                f"{len(rules)} rules with {len(patterns)} patterns: more than {MAX_RULES} with "
                f"{MAX_PATTERNS}", "one rule can have several patterns, and a pattern wildcards",
            )  # fmt: skip
        for pattern in patterns:
            check_pattern(pattern)
        for name in [name for rule in rules for name in (*rule.args, *rule.unless)]:
            check_visible("the name of an argument", name)
        for member in manifest.members if isinstance(manifest, Group) else []:
            check_visible("a member", member)


def check_rights(manifests: Iterable[Manifest]) -> None:
    """Raise BadInput where a rule names a right that no call needs: misspelled, it would deny
    nothing. Rules read back from disk are not checked: another version may have had more rights."""
    for manifest in manifests:
        for right in [named.rule.right for named in written("", manifest)]:
            check_right(right)


def check_right(right: str) -> None:
    """Raise BadInput for a right that no call needs."""
    if right != "*" and not any(f"{known}.".startswith(f"{right}.") for known in RIGHTS):
        raise BadInput(f"no call needs the right {right!r}", f"one of {', '.join(sorted(RIGHTS))}")


def patterns_of(rule: Rule) -> Iterator[str]:
    yield from (*rule.on, *rule.tainted)
    for each in (*rule.args.values(), *rule.unless.values()):
        if not isinstance(each, Bounds):
            yield from [each] if isinstance(each, str) else each


def in_words(rule: Rule) -> str:
    said = rule.right
    if rule.on != ALL:
        said += f" on {_words(rule.on)}"
    said += "".join(f", {quoted(name)}{_bounds(value)}" for name, value in rule.args.items())
    for name, value in rule.unless.items():
        said += f"{' and' if ' unless ' in said else ' unless'} {quoted(name)}{_bounds(value)}"
    return said + (f", tainted by {_words(rule.tainted)}" if rule.tainted else "")


def _words(patterns: Iterable[str]) -> str:
    return " or ".join(map(quoted, patterns))


def _bounds(value: Argument) -> str:
    if isinstance(value, Bounds):
        low = "" if value.min is None else f" from {value.min:g}"
        return low + ("" if value.max is None else f" to {value.max:g}")
    return f" like {_words([value] if isinstance(value, str) else value)}"
