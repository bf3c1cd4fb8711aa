"""Rules: who may do what, on what. Pure: no sockets, no files, no clock.

An agent's rules are those of its manifest, or of the group "agents" where it has none, and those
of the groups it is in; and so for each agent above it, whose rules bind it as well. A request is

    denied      where a rule that fits says so, be it of one of those above
    asked       else, where a rule that fits says so
    allowed     else, where the agent's own rules and those of all above it allow it
    denied      else: what no rule allows, is denied

What belongs to somebody else takes more than a rule: a share, or a grant. A grant is worth what its
giver may do at that moment, with the same arguments, so nobody hands on more than it has, and what
is revoked is gone down the whole chain. A grant makes up for a rule that is missing, never for one
that denies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from aios.syscalls.errors import BadInput
from aios.syscalls.rules import Argument, Bounds, Effect, Group, Manifest, Rule
from aios.syscalls.table import RIGHTS

from .lib.patterns import (
    Effort,
    TooLong,
    check_pattern,
    check_visible,
    exactly,
    literal,
    matches,
    quoted,
)
from .process import MANY

Mode = Literal["read", "write", "own"]  # of storage; own: purge and share, never granted
AGENTS = "agents"  # the group of all that have no manifest
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
BELOW = {"": "", ":*": "**", "/:*": "/**"}  # what is meant by a request's `below`, as a pattern
STRICTEST: tuple[Effect, ...] = ("deny", "ask", "allow")
RULES, PATTERNS = 256, 1024  # that one manifest or group may have
NAMED = 80  # letters of a principal in the words of its rules, each of which has them
CHAIN = 32  # grants that hang on each other; what comes by more is not there


class Named(NamedTuple):
    """A rule; in words, with where it is written."""

    effect: Effect
    rule: Rule
    text: str


class Subject(NamedTuple):
    """Who asks. `layers`: its own rules, then those of each agent above it."""

    principal: str
    layers: Sequence[Sequence[Named]] = ()
    pid: int = 0  # 0: a person, who may do everything
    labels: frozenset[str] = frozenset()
    is_worker: bool = False  # of a toolbox: it acts as its caller, whose grants are not its own

    @property
    def names(self) -> frozenset[str]:
        """All that a grant can say to mean it."""
        principal = frozenset() if self.is_worker else names_of(self.principal)
        return principal | {f"#{self.pid}"}


class Request(NamedTuple):
    """`owned` says of a subject whether the object is its own, or shared with it.

    Of a call about all that begins with `object`, or is below it, `below` is ":*" or "/:*". To
    allow that a rule has to cover all of it; to deny it, or ask, it is enough to touch it.
    """

    right: str
    object: str = ""
    below: str = ""
    args: Mapping[str, Any] = {}
    owned: Callable[[Subject], bool] = lambda _: True

    @property
    def all(self) -> str:
        """The object, for a person to read: with a pattern for what is below it."""
        return self.object + BELOW[self.below]

    @property
    def pattern(self) -> str:
        """What fits all of it, and nothing else of its kind."""
        return exactly(self.object) + BELOW[self.below]


class Grant(Struct, frozen=True):
    """`to`: a principal, all below one ("/team/*"), or one process ("#7")."""

    id: int
    giver: str
    pid: int  # of the giver; 0: a person
    to: str
    rule: Rule
    expires: float | None = None  # Unix time
    seconds: float | None = None  # that it was given for

    @property
    def ends(self) -> float:
        return math.inf if self.expires is None else self.expires


class Decision(NamedTuple):
    effect: Effect
    rule: str  # that decided, for a person to read


class Passed(NamedTuple):
    """What the gate says of a call that it does not refuse."""

    rule: str
    objects: tuple[str, ...] = ()  # all that the call is about, where a person is to be asked
    asked: tuple[Request, ...] = ()  # what the person has to be asked


@dataclass
class Look:
    """What one call has looked at: rules and arguments, and, apart from these, grants, which others
    may have given it without end. `known`: of one request, by process."""

    now: float
    labels: frozenset[str] = frozenset()
    effort: Effort = field(default_factory=Effort)
    grants: Effort = field(default_factory=Effort)
    known: dict[int, Decision] = field(default_factory=dict)
    chain: int = 0


class Judge:
    """`giver` finds the subject that gave a grant; None: it is gone."""

    def __init__(
        self, grants: Mapping[int, Grant], giver: Callable[[Grant], Subject | None]
    ) -> None:
        self.grants, self.giver = grants, giver

    def decide(
        self, subject: Subject, request: Request, now: float, look: Look | None = None
    ) -> Decision:
        """With a `look`, as a part of that. Raises TooLong."""
        look = look or Look(now)
        look.labels, look.known, look.chain = subject.labels, {}, 0
        return self._decide(subject, request, look, look.effort)

    def _decide(self, subject: Subject, request: Request, look: Look, effort: Effort) -> Decision:
        """Whoever is being looked at counts as denied: a grant that comes back to its giver adds
        nothing to what that has otherwise."""
        if not subject.pid:
            return Decision("allow", "a person may")
        if subject.pid in look.known:
            return look.known[subject.pid]
        verdict, whole = by_rules(subject, request, look.labels, effort)
        stands = whole and request.owned(subject)
        settled = ("deny", "allow") if stands else ("deny",)
        if verdict is not None and verdict.effect in settled:
            return verdict
        look.known[subject.pid] = NONE
        asked = verdict is not None and verdict.effect == "ask"
        best = self._by_grants(subject, request, look, asked)
        if verdict is not None and stands and best.effect != "allow":
            best = verdict
        elif best is NONE and whole:
            best = Decision("deny", "it is another's, and not shared")
        look.known[subject.pid] = best
        return best

    def _by_grants(self, subject: Subject, request: Request, look: Look, asked: bool) -> Decision:
        """A person's grant is an answer to what is asked, another's is not. Where it takes too
        long, by those that were looked at: the eldest."""
        best = NONE
        if look.chain == CHAIN:
            return best
        look.chain += 1
        with suppress(TooLong):  # the grants that were not reached count as not there
            for grant in self._given(subject, request, look):
                giver = self.giver(grant)
                if giver is None:
                    continue
                above = self._decide(giver, request, look, look.grants)
                effect = "ask" if above.effect == "allow" and asked and grant.pid else above.effect
                if STRICTEST.index(effect) > STRICTEST.index(best.effect):
                    best = Decision(effect, f"grant {grant.id} of {grant.giver or 'a person'}")
        look.chain -= 1
        return best

    def _given(self, subject: Subject, request: Request, look: Look) -> Iterator[Grant]:
        names = subject.names
        for grant in self.grants.values():
            look.grants.spend()
            if look.now >= grant.ends:
                continue
            if grant.to in names and fits(
                "allow", grant.rule, request, "", look.labels, look.grants
            ):
                yield grant

    def may_ever(self, subject: Subject, right: str, object: str, effort: Effort) -> bool:
        """Whether some arguments might be allowed, or asked about: what is worth showing.

        Raises TooLong.
        """

        def fitting(layer: Sequence[Named]) -> set[str]:
            return {
                "never"
                if named.effect == "deny"
                and not (named.rule.args or named.rule.unless or named.rule.tainted)
                else named.effect
                for named in layer
                if covers(named.rule.right, right)
                and any(matches(each, object, subject.principal, effort) for each in named.rule.on)
            }

        found = [fitting(layer) for layer in subject.layers]
        if any("never" in effects for effects in found):
            return False
        names = subject.names
        granted = any(
            grant.to in names
            and covers(grant.rule.right, right)
            and any(matches(each, object, "", effort) for each in grant.rule.on)
            for grant in self.grants.values()
        )
        return granted or all(effects & {"allow", "ask"} for effects in found)


NONE = Decision("deny", "no rule allows it")


def by_rules(
    subject: Subject, request: Request, labels: frozenset[str], effort: Effort
) -> tuple[Decision | None, bool]:
    """The strictest rule that fits; and whether each layer has one."""
    found: list[Named] = []
    whole = bool(subject.layers)
    for layer in subject.layers:
        before = len(found)
        effort.spend(len(layer))
        found += [
            named
            for named in layer
            if fits(named.effect, named.rule, request, subject.principal, labels, effort)
        ]
        whole = whole and len(found) > before
    if not found:
        return None, False
    strictest = found[0]
    if len(found) > 1:
        strictest = min(found, key=lambda named: STRICTEST.index(named.effect))
    return Decision(strictest.effect, strictest.text), whole


def all_fitting(subject: Subject, request: Request) -> list[str]:
    """In words. Raises TooLong."""
    effort = Effort()
    return [
        named.text
        for layer in subject.layers
        for named in layer
        if fits(named.effect, named.rule, request, subject.principal, subject.labels, effort)
    ]


def fits(
    effect: Effect, rule: Rule, request: Request, me: str, labels: frozenset[str], effort: Effort
) -> bool:
    """Whether a rule says anything of a request that `me` makes. Raises TooLong."""
    strict = effect != "allow"
    return (
        covers(rule.right, request.right)
        and (
            rule.on == ALL
            or any(_object_fits(effect, each, request, me, effort) for each in rule.on)
        )
        and (not rule.args or _arguments_fit(not strict, rule.args, request, me, effort))
        and not (rule.unless and _arguments_fit(strict, rule.unless, request, me, effort))
        and (
            not rule.tainted
            or (strict and MANY in labels)
            or any(matches(each, label, me, effort) for each in rule.tainted for label in labels)
        )
    )


def covers(right: str, asked: str) -> bool:
    return right in ("*", asked) or asked.startswith(right + ".")


def _object_fits(effect: Effect, pattern: str, request: Request, me: str, effort: Effort) -> bool:
    if request.below and effect != "allow":
        effort.spend()
        begin = literal(pattern, me)
        return begin.startswith(request.object) or request.object.startswith(begin)
    return matches(pattern, request.object + request.below, me, effort)


def _arguments_fit(
    wholly: bool, wanted: Mapping[str, Argument], request: Request, me: str, effort: Effort
) -> bool:
    args = request.args
    return all(
        name in args and _argument_fits(wholly, each, args[name], me, effort)
        for name, each in wanted.items()
    )


def _argument_fits(wholly: bool, wanted: Argument, value: Any, me: str, effort: Effort) -> bool:
    """Of a list: each item, or some item where not `wholly`; nothing fits a map wholly."""
    effort.spend()
    if isinstance(value, list | dict):
        items = value.values() if isinstance(value, dict) else value
        found = (_argument_fits(wholly, wanted, item, me, effort) for item in items)
        return isinstance(value, list) and bool(value) and all(found) if wholly else any(found)
    if isinstance(wanted, Bounds):
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        low, high = wanted.min, wanted.max
        return (low is None or value >= low) and (high is None or value <= high)
    patterns = [wanted] if isinstance(wanted, str) else wanted
    said = value if isinstance(value, str) else repr(value)
    return any(matches(pattern, said, me, effort) for pattern in patterns)


def names_of(principal: str) -> frozenset[str]:
    """All that a grant or a group can say to mean this agent; a person needs none."""
    if not principal:
        return frozenset()
    above = accumulate(principal.split("/")[:-1], lambda path, name: f"{path}/{name}")
    return frozenset({principal, *(f"{path}/*" for path in above)})


def groups_of(principal: str, groups: Mapping[str, Group]) -> set[str]:
    names = names_of(principal)
    return {name for name, group in groups.items() if names.intersection(group.members)}


def rules_of(principal: str, manifest: Manifest | None, groups: Mapping[str, Group]) -> list[Named]:
    """One layer: what is written about this agent itself."""
    found: list[Named] = []
    if manifest is not None:
        named = principal if len(principal) <= NAMED else "..." + principal[3 - NAMED :]
        found += written(f"manifest of {named}", manifest)
    member = groups_of(principal, groups) | ({AGENTS} if manifest is None else set())
    for name in sorted(member):
        found += written(f"group {name}", groups[name])
    return found


def written(source: str, manifest: Manifest) -> Iterator[Named]:
    for effect in STRICTEST:
        for each in getattr(manifest, effect):
            rule = as_rule(each)
            yield Named(effect, rule, f"{source}: {effect} {in_words(rule)}")


def as_rule(rule: Rule | str) -> Rule:
    """Raises BadInput where a string is none."""
    if isinstance(rule, Rule):
        return rule
    right, _, on = rule.partition(" ")
    if not re.fullmatch(r"\*|[a-z]+(\.[a-z]+)*", right):
        raise BadInput(f"no rule: {rule!r}", 'write "RIGHT" or "RIGHT OBJECT": see docs/access.md')
    return Rule(right, [on.strip()] if on.strip() else ALL)


def check_rules(manifests: Iterable[Manifest]) -> None:
    """Raises BadInput where one of their rules is none, or there are too many."""
    for manifest in manifests:
        rules = [named.rule for named in written("", manifest)]
        patterns = [pattern for rule in rules for pattern in patterns_of(rule)]
        if len(rules) > RULES or len(patterns) > PATTERNS:
            raise BadInput(
                f"{len(rules)} rules with {len(patterns)} patterns: more than {RULES} with "
                f"{PATTERNS}", "one rule can have several patterns, and a pattern wildcards",
            )  # fmt: skip
        for pattern in patterns:
            check_pattern(pattern)
        for name in [name for rule in rules for name in (*rule.args, *rule.unless)]:
            check_visible("the name of an argument", name)
        for member in manifest.members if isinstance(manifest, Group) else []:
            check_visible("a member", member)


def check_rights(manifests: Iterable[Manifest]) -> None:
    """Raises BadInput where a rule is about a right that no call needs: misspelled it would deny
    nothing. What was kept is not looked at: another version may have had other rights."""
    for manifest in manifests:
        for right in [named.rule.right for named in written("", manifest)]:
            check_right(right)


def check_right(right: str) -> None:
    """Raises BadInput."""
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
