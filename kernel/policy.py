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

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

from msgspec import Struct

from aios.syscalls.errors import BadInput
from aios.syscalls.rules import Argument, Bounds, Effect, Group, Manifest, Rule

AGENTS = "agents"  # the group of all that have no manifest
MANY = "many"  # the label of one that has more than are kept: it may be any
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
TOKEN = re.compile(r"\\.|/\*\*$|\*\*|\*|\{self\}|[^*{\\/]+|[/{\\]", re.DOTALL)
WILD = re.compile(r"[*{\\]")


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


class Grant(Struct, frozen=True):
    """`to`: a principal, all below one ("/team/*"), or one process ("#7")."""

    id: int
    giver: str
    pid: int  # of the giver; 0: a person
    to: str
    rule: Rule
    expires: float | None = None  # Unix time


class Decision(NamedTuple):
    effect: Effect
    rule: str  # that decided, for a person to read


class Passed(NamedTuple):
    """What the gate says of a call that it does not refuse."""

    rule: str
    asked: Request | None = None  # what a person has to be asked first


class Judge:
    """`giver` finds the subject that gave a grant; None: it is gone."""

    def __init__(
        self, grants: Mapping[int, Grant], giver: Callable[[Grant], Subject | None]
    ) -> None:
        self.grants, self.giver = grants, giver

    def decide(self, subject: Subject, request: Request, now: float) -> Decision:
        return self._decide(subject, request, subject.labels, now, {})

    def _decide(
        self, subject: Subject, request: Request, labels: frozenset[str], now: float,
        known: dict[int, Decision],
    ) -> Decision:  # fmt: skip
        """`known`: of those who were looked at already. Whoever is being looked at counts as
        denied: a grant that comes back to its giver adds nothing to what that has otherwise."""
        if not subject.pid:
            return Decision("allow", "a person may")
        if subject.pid in known:
            return known[subject.pid]
        verdict, whole = by_rules(subject, request, labels)
        stands = whole and request.owned(subject)
        settled = ("deny", "allow") if stands else ("deny",)
        if verdict is not None and verdict.effect in settled:
            return verdict
        known[subject.pid] = NONE
        asked = verdict is not None and verdict.effect == "ask"
        best = self._by_grants(subject, request, labels, now, known, asked)
        if verdict is not None and stands and best.effect != "allow":
            best = verdict
        elif best is NONE and whole:
            best = Decision("deny", "it is another's, and not shared")
        known[subject.pid] = best
        return best

    def _by_grants(
        self, subject: Subject, request: Request, labels: frozenset[str], now: float,
        known: dict[int, Decision], asked: bool,
    ) -> Decision:  # fmt: skip
        """A person's grant is an answer to what is asked, another's is not."""
        best = NONE
        for grant in self._given(subject, request, labels, now):
            giver = self.giver(grant)
            if giver is None:
                continue
            above = self._decide(giver, request, labels, now, known)
            effect = "ask" if above.effect == "allow" and asked and grant.pid else above.effect
            if STRICTEST.index(effect) > STRICTEST.index(best.effect):
                best = Decision(effect, f"grant {grant.id} of {grant.giver or 'a person'}")
        return best

    def _given(
        self, subject: Subject, request: Request, labels: frozenset[str], now: float
    ) -> Iterator[Grant]:
        names = subject.names
        for grant in self.grants.values():
            current = grant.expires is None or now < grant.expires
            if current and grant.to in names and fits("allow", grant.rule, request, "", labels):
                yield grant

    def may_ever(self, subject: Subject, right: str, object: str) -> bool:
        """Whether some arguments might be allowed, or asked about: what is worth showing."""

        def fitting(layer: Sequence[Named]) -> set[str]:
            return {
                "never"
                if named.effect == "deny"
                and not (named.rule.args or named.rule.unless or named.rule.tainted)
                else named.effect
                for named in layer
                if covers(named.rule.right, right)
                and any(matches(each, object, subject.principal) for each in named.rule.on)
            }

        found = [fitting(layer) for layer in subject.layers]
        if any("never" in effects for effects in found):
            return False
        names = subject.names
        granted = any(
            grant.to in names
            and covers(grant.rule.right, right)
            and any(matches(each, object) for each in grant.rule.on)
            for grant in self.grants.values()
        )
        return granted or all(effects & {"allow", "ask"} for effects in found)


NONE = Decision("deny", "no rule allows it")


def by_rules(
    subject: Subject, request: Request, labels: frozenset[str]
) -> tuple[Decision | None, bool]:
    """The strictest rule that fits; and whether each layer has one."""
    found: list[Named] = []
    whole = bool(subject.layers)
    for layer in subject.layers:
        before = len(found)
        found += [
            named
            for named in layer
            if fits(named.effect, named.rule, request, subject.principal, labels)
        ]
        whole = whole and len(found) > before
    if not found:
        return None, False
    strictest = found[0]
    if len(found) > 1:
        strictest = min(found, key=lambda named: STRICTEST.index(named.effect))
    return Decision(strictest.effect, strictest.text), whole


def all_fitting(subject: Subject, request: Request) -> list[str]:
    return [
        named.text
        for layer in subject.layers
        for named in layer
        if fits(named.effect, named.rule, request, subject.principal, subject.labels)
    ]


def fits(effect: Effect, rule: Rule, request: Request, me: str, labels: frozenset[str]) -> bool:
    """Whether a rule says anything of a request that `me` makes."""
    return (
        covers(rule.right, request.right)
        and (rule.on == ALL or any(_object_fits(effect, each, request, me) for each in rule.on))
        and (not rule.args or _arguments_fit(effect == "allow", rule.args, request, me))
        and not (rule.unless and _arguments_fit(effect != "allow", rule.unless, request, me))
        and (
            not rule.tainted
            or (effect != "allow" and MANY in labels)
            or any(matches(pattern, label, me) for pattern in rule.tainted for label in labels)
        )
    )


def covers(right: str, asked: str) -> bool:
    return right in ("*", asked) or asked.startswith(right + ".")


def _object_fits(effect: Effect, pattern: str, request: Request, me: str) -> bool:
    if request.below and effect != "allow":
        literal = WILD.split(pattern.replace("{self}", me), maxsplit=1)[0]
        return literal.startswith(request.object) or request.object.startswith(literal)
    return matches(pattern, request.object + request.below, me)


def _arguments_fit(wholly: bool, wanted: Mapping[str, Argument], request: Request, me: str) -> bool:
    args = request.args
    return all(
        name in args and _argument_fits(wholly, each, args[name], me)
        for name, each in wanted.items()
    )


def _argument_fits(wholly: bool, wanted: Argument, value: Any, me: str) -> bool:
    """Of a list: each item, or some item where not `wholly`; nothing fits a map wholly."""
    if isinstance(value, list | dict):
        items = value.values() if isinstance(value, dict) else value
        found = (_argument_fits(wholly, wanted, item, me) for item in items)
        return isinstance(value, list) and bool(value) and all(found) if wholly else any(found)
    if isinstance(wanted, Bounds):
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        low, high = wanted.min, wanted.max
        return (low is None or value >= low) and (high is None or value <= high)
    patterns = [wanted] if isinstance(wanted, str) else wanted
    said = value if isinstance(value, str) else repr(value)
    return any(matches(pattern, said, me) for pattern in patterns)


def matches(pattern: str, text: str, me: str = "") -> bool:
    return pattern == "**" or compiled(pattern, me).fullmatch(text) is not None


@lru_cache(8192)
def compiled(pattern: str, me: str) -> re.Pattern[str]:
    means = {"**": ".*", "/**": "(?:/.*)?", "*": "[^/:]*", "{self}": re.escape(me)}
    parts = (
        means.get(part, re.escape(part[1:] or part if part[0] == "\\" else part))
        for part in TOKEN.findall(pattern)
    )
    return re.compile("".join(parts), re.DOTALL)


def exactly(text: str) -> str:
    """A pattern that fits this text alone; where it is empty, anything."""
    return re.sub(r"([\\*{])", r"\\\1", text) or "**"


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
        found += written(f"manifest of {principal}", manifest)
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
    """Raises BadInput where one of their rules is none."""
    for manifest in manifests:
        for _ in written("", manifest):
            pass


def in_words(rule: Rule) -> str:
    said = rule.right
    if rule.on != ALL:
        said += f" on {' or '.join(rule.on)}"
    said += "".join(f", {name}{_bounds(value)}" for name, value in rule.args.items())
    for name, value in rule.unless.items():
        said += f"{' and' if ' unless ' in said else ' unless'} {name}{_bounds(value)}"
    return said + (f", tainted by {' or '.join(rule.tainted)}" if rule.tainted else "")


def _bounds(value: Argument) -> str:
    if isinstance(value, Bounds):
        low = "" if value.min is None else f" from {value.min:g}"
        return low + ("" if value.max is None else f" to {value.max:g}")
    return f" like {value if isinstance(value, str) else ' or '.join(value)}"
