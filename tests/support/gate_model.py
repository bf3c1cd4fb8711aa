"""Random policies and requests, and what the gate must say of them, worked out the plain way."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from aios.kernel.manifests import SourcedRule
from aios.kernel.rules import AccessRequest, Grant, RuleEvaluator, Subject
from aios.syscalls.rules import Bounds, Effect, Rule

NAMES = ["/a", "/a/b", "/a/b/c", "/d", "/d/b"]  # a process each, in this order
RIGHTS = ["x", "x.r", "x.w", "y"]
PATTERNS = ["**", "*", "{self}:*", "{self}:**", "/a:*", "/a:**", "/d:p/**", "/d:p*", "*/q", "/a"]
OBJECTS = ["", "/a:p", "/a:p/q", "/d:p", "/d:p/q", "/a/b:p", "/a", "/d", "/a:"]
LABELS = ["m:/a", "m:/d", "t:web", "many"]
VALUES: list[Any] = [0, 5, 10.5, "p", "p/q", "", True, ["p", "q"], [], ["p", 5], {"p": 1}, None]
VALUES += [["q", "z"], ["z", {"a": "p"}], {"a": ["q"]}, {}]
WANTED: list[Any] = ["*", "p", "p/**", ["p", "q"], Bounds(min=1), Bounds(max=5), Bounds(1, 10)]
ORDER = ["deny", "ask", "allow"]
EFFECTS: list[Effect] = ["deny", "ask", "allow", "allow", "allow", "allow", "allow"]


@dataclass
class World:
    subjects: list[Subject]
    grants: dict[int, Grant]
    owned: set[tuple[int, str]]

    def evaluator(self) -> RuleEvaluator:
        return RuleEvaluator(self.grants, self.giver)

    def giver(self, grant: Grant) -> Subject | None:
        if grant.pid == 0:
            return Subject("")
        return self.subjects[grant.pid - 1] if grant.pid <= len(self.subjects) else None


def rule(rng: random.Random) -> Rule:
    return Rule(
        rng.choice([*RIGHTS, *["*"] * 4]),
        ["**"] if rng.random() < 0.5 else rng.sample(PATTERNS, rng.choice([1, 1, 2])),
        {"n": rng.choice(WANTED)} if rng.random() < 0.2 else {},
        [rng.choice(["m:**", "t:*", "m:/a"])] if rng.random() < 0.2 else [],
        {name: rng.choice(WANTED) for name in rng.choice(["n", "n", "m", "nm"])}
        if rng.random() < 0.2
        else {},
    )


def world(rng: random.Random) -> World:
    own = [
        [
            SourcedRule(rng.choice(EFFECTS), rule(rng), str(n))
            for n in range(rng.choice([0, 2, 4, 6]))
        ]
        for _ in NAMES
    ]
    subjects = []
    for pid, name in enumerate(NAMES, 1):
        above = [i for i, other in enumerate(NAMES) if name.startswith(other + "/")]
        layers = [own[pid - 1], *(own[i] for i in above)]
        labels = frozenset(label for label in LABELS if rng.random() < 0.25)
        subjects.append(Subject(name, layers, pid, labels))
    grants = {}
    for number in range(1, rng.choice([1, 1, 3, 8])):
        pid = rng.choice([0, *range(1, len(NAMES) + 2)])  # the last: a process that has ended
        to = rng.choice([*NAMES, "/a/*", "/d/*", "#2"])
        expires = rng.choice([None, None, 50.0, 150.0])
        grants[number] = Grant(number, "", pid, to, rule(rng), expires)
    owned = {(s.pid, o) for s in subjects for o in OBJECTS if rng.random() < 0.7}
    return World(subjects, grants, owned)


def request(rng: random.Random, world: World) -> AccessRequest:
    args = {name: rng.choice(VALUES) for name in "nm" if rng.random() < 0.7}
    about = rng.choice(OBJECTS)
    below = rng.choice(["", "", "", ":*", "/:*"])
    right = rng.choice(RIGHTS)
    return AccessRequest(right, about, below, args, lambda who: (who.pid, about) in world.owned)


# --- the plain way --------------------------------------------------------------------------------


def plain(world: World, asker: Subject, request: AccessRequest, now: float) -> str:
    """Raise everybody's level, from deny, until nothing changes."""
    levels = {subject.pid: 0 for subject in world.subjects} | {0: 2}
    while True:
        before = dict(levels)
        for subject in world.subjects:
            levels[subject.pid] = level(world, subject, request, asker.labels, levels, now)
        if levels == before:
            return ORDER[levels[asker.pid]]


def level(
    world: World, who: Subject, request: AccessRequest, labels: frozenset[str],
    levels: dict[int, int], now: float,
) -> int:  # fmt: skip
    verdicts = [
        [ORDER.index(n.effect) for n in layer if applies(n.effect, n.rule, request, who, labels)]
        for layer in who.layers
    ]
    flat = [verdict for layer in verdicts for verdict in layer]
    if 0 in flat:
        return 0
    asked = 1 in flat
    best = 0
    if all(verdicts) and (who.pid, request.object) in world.owned:
        best = 1 if asked else 2
    for grant in world.grants.values():
        named = grant.to in (who.principal, f"#{who.pid}")
        below = grant.to.endswith("/*") and who.principal.startswith(grant.to[:-1])
        late = grant.expires is not None and now >= grant.expires
        nobody = Subject("")
        holds = (named or below) and not late and grant.pid in levels
        if holds and applies("allow", grant.rule, request, nobody, labels):
            worth = levels[grant.pid]
            best = max(best, min(worth, 1) if asked and grant.pid else worth)
    return best


def applies(
    effect: str, rule: Rule, request: AccessRequest, who: Subject, labels: frozenset[str]
) -> bool:
    if rule.right != "*" and request.right.split(".")[: rule.right.count(".") + 1] != (
        rule.right.split(".")
    ):
        return False
    if not any(about(effect, p.replace("{self}", who.principal), request) for p in rule.on):
        return False
    strict = effect != "allow"
    if any(not said(request, name, wanted, some=strict) for name, wanted in rule.args.items()):
        return False
    known = [said(request, name, wanted, some=not strict) for name, wanted in rule.unless.items()]
    if known and all(known):
        return False
    if effect != "allow" and "many" in labels:
        return True
    return not rule.tainted or any(glob(p, label) for p in rule.tainted for label in labels)


def about(effect: str, pattern: str, request: AccessRequest) -> bool:
    if not request.below or effect == "allow":
        return glob(pattern, request.object + request.below)
    start = pattern[: pattern.index("*")] if "*" in pattern else pattern
    length = min(len(start), len(request.object))
    return start[:length] == request.object[:length]


def said(request: AccessRequest, name: str, wanted: Any, some: bool) -> bool:
    """Tell whether some part of an argument fits; or all of it, with no map in it."""
    if name not in request.args:
        return False
    leaves, mapped = leaves_of(request.args[name])
    verdicts = [leaf is not EMPTY and leaf_fits(wanted, leaf) for leaf in leaves]
    return True in verdicts if some else not mapped and False not in verdicts


EMPTY = object()  # an empty list


def leaves_of(value: Any) -> tuple[list[Any], bool]:
    """Return the values in lists and maps, and whether there was a map."""
    if type(value) not in (list, dict):
        return [value], False
    parts = [leaves_of(item) for item in (value.values() if type(value) is dict else value)]
    leaves = [leaf for found, _ in parts for leaf in found] or [EMPTY]
    return leaves, type(value) is dict or any(mapped for _, mapped in parts)


def leaf_fits(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, Bounds):
        if type(value) not in (int, float):
            return False
        return not (wanted.min is not None and value < wanted.min) and not (
            wanted.max is not None and value > wanted.max
        )
    text = value if type(value) is str else repr(value)
    return any(glob(p, text) for p in ([wanted] if type(wanted) is str else wanted))


def glob(pattern: str, text: str) -> bool:
    """Letter by letter."""
    if pattern == "/**":
        return text == "" or text[0] == "/"
    if pattern == "":
        return text == ""
    if pattern[:2] == "**":
        return any(glob(pattern[2:], text[at:]) for at in range(len(text) + 1))
    if pattern[0] == "*":
        ends = [at for at in range(len(text) + 1) if not set(text[:at]) & set("/:")]
        return any(glob(pattern[1:], text[at:]) for at in ends)
    return text[:1] == pattern[0] and glob(pattern[1:], text[1:])


def compare(cases: int, seed: int) -> dict[str, int]:
    """How often the gate said what; AssertionError where the plain way says otherwise."""
    rng = random.Random(seed)
    said = dict.fromkeys(ORDER, 0)
    while sum(said.values()) < cases:
        here = world(rng)
        evaluator = here.evaluator()
        for _ in range(20):
            asker, asked = rng.choice(here.subjects), request(rng, here)
            decision = evaluator.decide(asker, asked, 100.0)
            expected = plain(here, asker, asked, 100.0)
            assert decision.effect == expected, (here, asker, asked, decision, expected)
            said[decision.effect] += 1
    return said
