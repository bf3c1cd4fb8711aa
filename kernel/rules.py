"""The evaluator of rules: who may do what, on which objects. Pure: no sockets, files or clock.

An agent's rules are those of its manifest, or of the group "agents" where it has none, and those
of the groups it is in; and so for each agent above it, whose rules bind it as well. A request is

    denied      where a rule that fits denies it, be it the rule of an agent above
    asked       else, where a rule that fits says to ask a person
    allowed     else, where the agent's own rules and those of all above it allow it
    denied      else

An object of another owner takes more than a rule: a share, or a grant. A grant is worth what its
giver may do at that moment, with the same arguments. So nobody hands on more than it has, and a
grant that is revoked is gone down the whole chain. A grant makes up for a rule that is missing,
never for one that denies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from aios.syscalls.rules import Argument, Bounds, Effect, Rule

from .lib.patterns import Effort, TooLong, exactly, literal, matches
from .lib.trees import root
from .manifests import ALL, STRICTEST, SourcedRule, names_of
from .process import MANY

Mode = Literal["read", "write", "own"]  # of storage; own: purge and share, never granted
BELOW = {"": "", ":*": "**", "/:*": "/**"}  # a request's `below`, as a pattern
MAX_CHAIN_GRANTS = 32  # grants that rest on one another; a longer chain gives nothing
GRANT_STEPS = 20_000  # for the grants that one tree of agents gave, in one call
GRANTS_PER_STEP = 16  # that are only passed over


class Subject(NamedTuple):
    """The agent or person that asks. `layers`: its own rules, then those of each agent above it."""

    principal: str
    layers: Sequence[Sequence[SourcedRule]] = ()
    pid: int = 0  # 0: a person, who may do everything
    labels: frozenset[str] = frozenset()
    is_worker: bool = False  # of a toolbox: it acts as its caller, whose grants are not its own

    @property
    def names(self) -> frozenset[str]:
        """The names by which a grant can mean this subject."""
        principal = frozenset() if self.is_worker else names_of(self.principal)
        return principal | {f"#{self.pid}"}


class AccessRequest(NamedTuple):
    """A right on an object. `owned` tells whether a subject owns the object, or has it shared;
    None: nobody owns it.

    `below` is ":*" where a call is about all objects that begin with `object`, and "/:*" where it
    is about that object and all below it. A rule that allows has to cover all of them; one that
    denies or asks need only touch them.
    """

    right: str
    object: str = ""
    below: str = ""
    args: Mapping[str, Any] = {}
    owned: Callable[[Subject], bool] | None = None

    @property
    def all(self) -> str:
        """The object as a person reads it: with a pattern for the objects below it."""
        return self.object + BELOW[self.below]

    @property
    def pattern(self) -> str:
        """The pattern that fits all of these objects, and no other."""
        return exactly(self.object) + BELOW[self.below]


class Grant(Struct, frozen=True):
    """A rule that a giver has granted. `to`: a principal, all below one ("/team/*"), or one process
    ("#7")."""

    id: int
    giver: str
    pid: int  # of the giver; 0: a person
    to: str
    rule: Rule
    expires: float | None = None  # Unix time
    seconds: float | None = None  # how long it was granted for

    @property
    def ends(self) -> float:
        return math.inf if self.expires is None else self.expires


class Decision(NamedTuple):
    """The effect of a request, and the rule that decided it in words."""

    effect: Effect
    rule: str


class Permit(NamedTuple):
    """The gate's answer to a call that it does not refuse."""

    rule: str
    objects: tuple[str, ...] = ()  # all objects of the call, where a person is to be asked
    asked: tuple[AccessRequest, ...] = ()  # the requests that a person has to approve


@dataclass
class Evaluation:
    """The work spent on one call. Grants are counted apart from rules and arguments, and by the
    tree of agents that gave them, since others can give an agent grants without end. `known` has
    the decisions of one request, by pid."""

    now: float
    labels: frozenset[str] = frozenset()
    effort: Effort = field(default_factory=Effort)
    grants: dict[str, Effort] = field(default_factory=dict)
    known: dict[int, Decision] = field(default_factory=dict)
    chain: int = 0

    def effort_for(self, grant: Grant) -> Effort:
        tree = root(grant.giver) if grant.pid else ""
        return self.grants.setdefault(tree, Effort(GRANT_STEPS))


class RuleEvaluator:
    """Decides requests. `giver` finds the subject that gave a grant, or None where it has ended."""

    def __init__(
        self, grants: Mapping[int, Grant], giver: Callable[[Grant], Subject | None]
    ) -> None:
        self.grants, self.giver = grants, giver

    def decide(
        self,
        subject: Subject,
        request: AccessRequest,
        now: float,
        evaluation: Evaluation | None = None,
    ) -> Decision:
        """Decide a request, as a part of `evaluation` where there is one. Raises TooLong."""
        evaluation = evaluation or Evaluation(now)
        evaluation.labels, evaluation.known, evaluation.chain = subject.labels, {}, 0
        return self._decide(subject, request, evaluation, evaluation.effort)

    def _decide(
        self, subject: Subject, request: AccessRequest, evaluation: Evaluation, effort: Effort
    ) -> Decision:
        """Decide for one subject. Cycles of grants are ignored: a subject that is being decided
        already counts as denied."""
        if not subject.pid:
            return Decision("allow", "a person may")
        if subject.pid in evaluation.known:
            return evaluation.known[subject.pid]
        verdict, whole = by_rules(subject, request, evaluation.labels, effort)
        stands = whole and (request.owned is None or request.owned(subject))
        settled = ("deny", "allow") if stands else ("deny",)
        if verdict is not None and verdict.effect in settled:
            return verdict
        evaluation.known[subject.pid] = NONE
        asked = verdict is not None and verdict.effect == "ask"
        best = self._by_grants(subject, request, evaluation, asked)
        if verdict is not None and stands and best.effect != "allow":
            best = verdict
        elif best is NONE and whole:
            best = Decision("deny", "it is another's, and not shared")
        evaluation.known[subject.pid] = best
        return best

    def _by_grants(
        self, subject: Subject, request: AccessRequest, evaluation: Evaluation, asked: bool
    ) -> Decision:
        """Decide by the grants of a subject, those of persons first, then the eldest. A person's
        grant stands for an approval, an agent's does not."""
        best = NONE
        if evaluation.chain == MAX_CHAIN_GRANTS:
            return best
        evaluation.chain += 1
        for grant in self._given(subject, evaluation):
            with suppress(TooLong):  # the grants of a tree beyond its steps count as not there
                effect = self._effect_of(grant, request, evaluation)
                if effect == "allow" and asked and grant.pid:
                    effect = "ask"
                if STRICTEST.index(effect) > STRICTEST.index(best.effect):
                    best = Decision(effect, f"grant {grant.id} of {grant.giver or 'a person'}")
            if best.effect == "allow":
                break
        evaluation.chain -= 1
        return best

    def _given(self, subject: Subject, evaluation: Evaluation) -> list[Grant]:
        names = subject.names
        given = [
            grant
            for grant in self.grants.values()
            if grant.to in names and evaluation.now < grant.ends
        ]
        return sorted(given, key=lambda grant: grant.pid != 0)

    def _effect_of(self, grant: Grant, request: AccessRequest, evaluation: Evaluation) -> Effect:
        """Return the effect of a grant: what its giver may do, where it fits. Raises TooLong."""
        effort = evaluation.effort_for(grant)
        effort.spend(1 + len(self.grants) // GRANTS_PER_STEP)  # that are looked at for its giver
        if not fits("allow", grant.rule, request, "", evaluation.labels, effort):
            return "deny"
        giver = self.giver(grant)
        return "deny" if giver is None else self._decide(giver, request, evaluation, effort).effect

    def may_ever(self, subject: Subject, right: str, object: str, evaluation: Evaluation) -> bool:
        """Tell whether some arguments may be allowed, or asked about. Raises TooLong."""
        effort = evaluation.effort

        def fitting(layer: Sequence[SourcedRule]) -> set[str]:
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
        if all(effects & {"allow", "ask"} for effects in found):
            return True
        for grant in self._given(subject, evaluation):
            with suppress(TooLong):
                effort = evaluation.effort_for(grant)
                effort.spend()
                if covers(grant.rule.right, right) and any(
                    matches(each, object, "", effort) for each in grant.rule.on
                ):
                    return True
        return False


NONE = Decision("deny", "no rule allows it")


def by_rules(
    subject: Subject, request: AccessRequest, labels: frozenset[str], effort: Effort
) -> tuple[Decision | None, bool]:
    """Return the decision of the strictest rule that fits, and whether one of each layer fits."""
    found: list[SourcedRule] = []
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


def all_fitting(subject: Subject, request: AccessRequest) -> list[str]:
    """Return all rules that fit, in words. Raises TooLong."""
    effort = Effort()
    return [
        named.text
        for layer in subject.layers
        for named in layer
        if fits(named.effect, named.rule, request, subject.principal, subject.labels, effort)
    ]


def fits(
    effect: Effect,
    rule: Rule,
    request: AccessRequest,
    me: str,
    labels: frozenset[str],
    effort: Effort,
) -> bool:
    """Tell whether a rule fits a request that `me` makes. Raises TooLong."""
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


def _object_fits(
    effect: Effect, pattern: str, request: AccessRequest, me: str, effort: Effort
) -> bool:
    if request.below and effect != "allow":
        effort.spend()
        begin = literal(pattern, me)
        return begin.startswith(request.object) or request.object.startswith(begin)
    return matches(pattern, request.object + request.below, me, effort)


def _arguments_fit(
    wholly: bool, wanted: Mapping[str, Argument], request: AccessRequest, me: str, effort: Effort
) -> bool:
    args = request.args
    return all(
        name in args and _argument_fits(wholly, each, args[name], me, effort)
        for name, each in wanted.items()
    )


def _argument_fits(wholly: bool, wanted: Argument, value: Any, me: str, effort: Effort) -> bool:
    """Tell whether a value fits. All items of a list have to where `wholly`, else one item or one
    value of a map; no map fits wholly."""
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
