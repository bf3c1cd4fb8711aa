"""Rules and grants by themselves, against a plain model of them."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from gate_model import OBJECTS, PATTERNS, compare, glob, request, world
from hypothesis import given
from hypothesis import strategies as st

from aios.kernel.access import plainly
from aios.kernel.policy import Judge, Request, Subject, covers, exactly, matches, rules_of
from aios.syscalls.errors import BadInput
from aios.syscalls.rules import Argument, Bounds, Group, Manifest, Rule


def test_the_gate_says_what_the_plain_model_says() -> None:
    said = compare(20_000, seed=5)
    assert all(count > 500 for count in said.values()), said


def test_what_passes_whatever_it_is_about_is_what_the_rules_say() -> None:
    rng = random.Random(6)
    plain = 0
    for _ in range(30_000):
        made = world(rng)
        subject, asked = (
            rng.choice(made.subjects),
            request(rng, made)._replace(owned=lambda _: True),
        )
        layers = [
            [named for named in layer if covers(named.rule.right, asked.right)]
            for layer in subject.layers
        ]
        passed = plainly(layers)
        if passed is not None:
            plain += 1
            said = made.judge().decide(subject._replace(layers=layers), asked, 100.0)
            assert said == ("allow", passed.rule)
    assert plain > 300


def test_patterns_fit_what_they_say() -> None:
    for pattern, text in product([p for p in PATTERNS if "{" not in p], OBJECTS):
        assert matches(pattern, text) == glob(pattern, text), (pattern, text)
    assert matches("{self}:**", "/me:a/b", "/me")
    assert not matches("{self}:**", "/me/x:a", "/me")
    assert not matches("{self}", "/mex", "/me.")
    assert matches("/team/**", "/team")
    assert not matches("a.c", "abc")


@given(st.text(alphabet="a*{self}\\/:\n", min_size=1), st.text(alphabet="a*{self}\\/:\n"))
def test_an_exact_pattern_fits_one_text(text: str, other: str) -> None:
    assert matches(exactly(text), text, "/me")
    assert matches(exactly(text), other, "/me") == (text == other)


def test_rules_of_an_agent() -> None:
    groups = {"agents": Group(allow=["llm"]), "team": Group(members=["/t/*"], deny=["msg /x"])}
    assert [named.text for named in rules_of("/a", None, groups)] == ["group agents: allow llm"]
    assert [named.text for named in rules_of("/t/b", None, groups)] == [
        "group agents: allow llm", "group team: deny msg on /x",
    ]  # fmt: skip
    manifest = Manifest(allow=[Rule("tool", ["pay"], {"amount": "5"}, ["web"])])
    assert [named.text for named in rules_of("/t/b", manifest, groups)] == [
        "manifest of /t/b: allow tool on pay, amount like 5, tainted by web",
        "group team: deny msg on /x",
    ]


@pytest.mark.parametrize("rule", ["", "A", "sto.", "*.read", "sto-read", " sto"])
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(BadInput, match="no rule"):
        rules_of("/a", Manifest(allow=[rule]), {"agents": Group()})


def test_one_with_too_many_labels_may_have_any() -> None:
    """Else who sends it enough messages could wash its labels off."""
    manifest = Manifest(allow=["tool"], deny=[Rule("tool", ["pay"], tainted=["tool:web"])])
    layers = [rules_of("/a", manifest, {})]
    judge = Judge({}, lambda _: None)
    for labels, said in [([], "allow"), (["tool:x"], "allow"), (["many"], "deny")]:
        subject = Subject("/a", layers, 1, frozenset(labels))
        assert judge.decide(subject, Request("tool", "pay"), 0).effect == said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"to": "a@us.org", "sum": 5}, "allow"),
        ({"to": ["a@us.org", "b@us.org"], "sum": 5}, "allow"),
        ({"to": "a@us.org", "sum": 11}, "ask"),
        ({"to": "a@us.org", "sum": "5"}, "ask"),
        ({"to": "a@us.org"}, "ask"),
        ({"to": ["a@us.org", "x@else.org"], "sum": 5}, "ask"),
        ({"to": ["a@us.org", {"x": "b@us.org"}], "sum": 5}, "ask"),
        ({"to": ["evil@us.org", "a@us.org"], "sum": 5}, "deny"),
        ({"to": [{"x": "evil@us.org"}], "sum": 5}, "deny"),
    ],
)
def test_a_rule_that_asks_but_for_what_is_known(args: dict[str, Any], said: str) -> None:
    """One item is enough to deny; what is unknown, missing or of another type is asked about."""
    known: dict[str, Argument] = {"to": "*@us.org", "sum": Bounds(0, 10)}
    manifest = Manifest(
        allow=["tool"],
        ask=[Rule("tool", ["pay"], unless=known)],
        deny=[Rule("tool", args={"to": "evil@*"})],
    )
    layer = rules_of("/a", manifest, {})
    assert layer[1].text == (
        "manifest of /a: ask tool on pay unless to like *@us.org and sum from 0 to 10"
    )
    judge = Judge({}, lambda _: None)
    asked = judge.decide(Subject("/a", [layer], 1), Request("tool", "pay", args=args), 0)
    assert asked.effect == said
