"""Rules and grants by themselves, against a plain model of them."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gate_model import OBJECTS, PATTERNS, compare, glob, request, world
from hypothesis import assume, given
from hypothesis import strategies as st

from aios.kernel.access.gate import plainly
from aios.kernel.access.grants import MAX_GRANTS, Grants, steady
from aios.kernel.lib.patterns import (
    MAX_STEPS,
    MAX_WILDCARDS,
    Effort,
    TooLong,
    exactly,
    matches,
    parsed,
)
from aios.kernel.manifests import check_rules, rules_of
from aios.kernel.process import ProcessTable
from aios.kernel.rules import AccessRequest, Evaluation, Grant, RuleEvaluator, Subject, covers
from aios.syscalls.base import Empty
from aios.syscalls.errors import BadInput, LimitReached
from aios.syscalls.proc import Limits
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
            request(rng, made)._replace(owned=None),
        )
        layers = [
            [named for named in layer if covers(named.rule.right, asked.right)]
            for layer in subject.layers
        ]
        passed = plainly(layers)
        if passed is not None:
            plain += 1
            said = made.evaluator().decide(subject._replace(layers=layers), asked, 100.0)
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


@given(
    st.lists(st.sampled_from(["*", "**", "a", "b", "/", ":", "ab", "a/"]), max_size=9),
    st.text(alphabet="ab/:", max_size=12),
)
def test_a_pattern_fits_what_it_fits_letter_by_letter(parts: list[str], text: str) -> None:
    pattern = "".join(parts)
    assume("***" not in pattern and not pattern.endswith("/**"))
    for each in (pattern, pattern + "/**"):
        found = glob(pattern, text) or (each != pattern and glob(pattern + "/**", text))
        assert matches(each, text) == found, (each, text)


# The worst for a matcher that goes back: many ways to share out the letters, and none fits.
HARD = ["*a*a*a*a*a*a*b", "**a**a**a**a**b", "**a*b**", "**/*/*/*/x**", "**" + "*a" * 15 + "b"]


@pytest.mark.parametrize("pattern", HARD)
@pytest.mark.parametrize("part", ["a", "/", "a/", "aaaaaaaaaa/"])
def test_the_steps_of_a_pattern_grow_with_the_text_and_no_more(pattern: str, part: str) -> None:
    def steps(size: int) -> int:
        effort = Effort(10**9)
        assert not matches(pattern, part * (size // len(part)), "", effort)
        return 10**9 - effort.left

    assert steps(65536) <= 17 * steps(4096)
    assert steps(65536) <= 65536 * (MAX_WILDCARDS + 1)


def test_one_call_takes_so_many_steps_and_no_more() -> None:
    """Then it is denied; grants that were not reached count as not there, and the eldest come
    first: who gives many takes nothing away."""
    args = {"to": ["a" * 50] * 1000}
    layer = rules_of("/a", Manifest(deny=[Rule("tool", args={"to": ["*b*c*d"] * 64})] * 15), {})
    with pytest.raises(TooLong):
        RuleEvaluator({}, lambda _: None).decide(
            Subject("/a", [layer], 1), AccessRequest("tool", "", "", args), 0
        )
    grants = {
        n: Grant(n, "/x", 0, "/a", Rule("tool", ["*b*c*d"] * 64, {}), None)
        for n in range(2, MAX_STEPS // 64)
    }
    subject, request = Subject("/a", [[]], 1), AccessRequest("tool", "pay")
    evaluator = RuleEvaluator(grants, lambda _: Subject(""))
    assert evaluator.decide(subject, request, 0).effect == "deny"
    grants = {1: Grant(1, "/x", 0, "/a", Rule("tool"), None)} | grants
    assert (
        RuleEvaluator(grants, lambda _: Subject("")).decide(subject, request, 0).effect == "allow"
    )


@pytest.mark.parametrize("pid", [0, 1000])
def test_the_grants_of_one_tree_take_nothing_from_those_of_another(pid: int) -> None:
    """They are older than the one of a person or an agent, and take many steps each."""
    rules = [Rule("tool", [f"*a*{n}"] * 4) for n in range(250)]
    costly = rules_of("/evil/x", Manifest(allow=[*rules]), {})
    grants = {
        n: Grant(n, f"/evil/{n}", n, "/a", Rule("tool", ["*p*y", "x"])) for n in range(1, 257)
    }
    grants[300] = Grant(300, "/b" if pid else "", pid, "/a", Rule("tool"))
    free = Subject("/b", [rules_of("/b", Manifest(allow=["tool"]), {})], 1000)

    def giver(grant: Grant) -> Subject:
        if grant.id == 300:
            return free if pid else Subject("")
        return Subject(grant.giver, [costly], grant.pid)

    evaluator, subject = RuleEvaluator(grants, giver), Subject("/a", [[]], 5000)
    assert evaluator.decide(subject, AccessRequest("tool", "pay"), 0).effect == "allow"
    evaluation = Evaluation(0)
    names = [f"pa{'a' * 100}{n}" for n in range(100)]
    assert all(evaluator.may_ever(subject, "tool", name, evaluation) for name in names)


def test_a_chain_of_grants_has_an_end() -> None:
    """As long as one could make it, it would end the kernel's stack."""
    subjects = [Subject(f"/{n}", [[]], n) for n in range(1, 2001)]

    def evaluator(length: int) -> RuleEvaluator:
        grants = [Grant(n, "", n, f"/{n + 1}", Rule("x"), None) for n in range(1, length)]
        first = Grant(0, "", 0, "/1", Rule("x"), None)
        giver = lambda grant: subjects[grant.pid - 1] if grant.pid else Subject("")  # noqa: E731
        return RuleEvaluator({grant.id: grant for grant in [first, *grants]}, giver)

    assert evaluator(20).decide(subjects[19], AccessRequest("x"), 0).effect == "allow"
    assert evaluator(2000).decide(subjects[1999], AccessRequest("x"), 0).effect == "deny"


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (Manifest(allow=["sto " + "*a" * (MAX_WILDCARDS + 1)]), "wildcards"),
        (Manifest(allow=["sto " + "{self}" * (MAX_WILDCARDS + 1)]), "wildcards"),
        (
            Manifest(deny=[Rule("tool", args={"to": ["x", "**a" * (MAX_WILDCARDS + 1)]})]),
            "wildcards",
        ),
        (Manifest(allow=["sto x"] * 200, deny=["sto y"] * 200), "400 rules"),
        (Manifest(allow=[Rule("sto", ["x"] * 64)] * 20), "1280 patterns"),
    ],
)
def test_what_would_take_too_long_is_refused(manifest: Manifest, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        check_rules([manifest])
    check_rules([Manifest(allow=[f"sto {'*a' * MAX_WILDCARDS}"] * 256)])


HIDDEN = [
    "a\x1b[2J", "a\nb", "\u202eb", "\u2066b", "\u200bb", "\x9b", "b\u3164", "a\ufe0f", "\u2800",
]  # fmt: skip


@pytest.mark.parametrize("text", HIDDEN)
def test_a_pattern_shows_all_that_it_holds(text: str) -> None:
    """A person reads it in a question, and answers by that."""
    for manifest in (
        Manifest(allow=[f"sto.read {text}"]), Manifest(ask=[Rule("tool", args={"to": text})]),
        Manifest(deny=[Rule("tool", unless={text: "x"})]), Manifest(allow=[Rule("m", [text])]),
        Manifest(deny=[Rule("tool", tainted=[text])]), Group(members=[f"/{text}"]),
    ):  # fmt: skip
        with pytest.raises(BadInput, match="do not show"):
            check_rules([manifest])
    check_rules([Manifest(allow=["sto.read /m\u00fcller:\u4e2d\u6587/**"])])


def test_what_has_expired_is_gone(tmp_path: Path) -> None:
    """From the list, from the file, and from what counts for the limit on grants."""
    now, notes = [1000.0], dict[str, bool]()
    table = ProcessTable(9, 9, 9)
    person = table.add("client", "shell", 0, 0, Limits(), 0.0)
    agent = table.add("agent", "a", 0, 0, Limits(), 0.0)

    def opened() -> Grants:
        note = lambda key, row: notes.update({key: row is not None})  # noqa: E731
        return Grants(tmp_path / "policy.json", table, note, now=lambda: now[0])

    grants = opened()
    size = None
    for _ in range(3):
        for _ in range(MAX_GRANTS):
            grants.give(agent, "/x", Rule("llm"), 8)
            grants.give(person, "/x", Rule("llm"), 8)
        with pytest.raises(LimitReached):
            grants.give(agent, "/x", Rule("llm"), 8)
        assert size in (None, len((tmp_path / "policy.json").read_bytes()) // 4096)
        size = len((tmp_path / "policy.json").read_bytes()) // 4096
        now[0] += 8
    grants.expire()
    call: Any = SimpleNamespace(process=person)
    assert grants.visible(call, Empty()) == []
    assert True not in notes.values()
    assert opened().by_id == {} and b'"grants": []' in (tmp_path / "policy.json").read_bytes()
    grants.give(person, "/x", Rule("llm"), 8)
    now[0] -= 7200  # the clock is set back, and the system started anew
    assert [grant.expires for grant in opened().by_id.values()] == [now[0] + 8]


def test_time_runs_on_evenly_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    now = steady()
    before = now()
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert before <= now() < before + 3600


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


@pytest.mark.parametrize("letters", [4, 200])
def test_labels_are_bounded_in_number_and_in_all(letters: int) -> None:
    """All that an agent writes carries them: names below names are long."""
    table = ProcessTable(9, 9, 9)
    process = table.add("agent", "a", 0, 0, Limits(), 0.0)
    held = []
    for number in range(100):
        process.taint({f"{number:03}".ljust(letters, "x")})
        held.append(len(process.labels))
    assert max(held) == {4: 64, 200: 21}[letters]
    assert "many" in process.labels


def test_one_with_too_many_labels_may_have_any() -> None:
    """Else who sends it enough messages could wash its labels off."""
    manifest = Manifest(allow=["tool"], deny=[Rule("tool", ["pay"], tainted=["tool:web"])])
    layers = [rules_of("/a", manifest, {})]
    evaluator = RuleEvaluator({}, lambda _: None)
    for labels, said in [([], "allow"), (["tool:x"], "allow"), (["many"], "deny")]:
        subject = Subject("/a", layers, 1, frozenset(labels))
        assert evaluator.decide(subject, AccessRequest("tool", "pay"), 0).effect == said


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
    evaluator = RuleEvaluator({}, lambda _: None)
    asked = evaluator.decide(Subject("/a", [layer], 1), AccessRequest("tool", "pay", args=args), 0)
    assert asked.effect == said


def test_a_pattern_that_is_the_same_for_all_is_parsed_once() -> None:
    parsed.cache_clear()
    assert all(matches("/team/*", "/team/a", me) for me in ("/a", "/b"))
    assert all(matches("{self}/*", f"{me}/c", me) for me in ("/a", "/b"))
    assert parsed.cache_info().currsize == 3


def test_the_words_of_a_rule_are_about_the_rule_however_long_its_principal() -> None:
    """There are 64 above each other, of 64 letters each."""
    principal = "/".join(["", *["a" * 64] * 63, "scout"])
    [rule] = rules_of(principal, Manifest(deny=["sto.write"]), {})
    assert rule.text.startswith("manifest of ...aaa")
    assert rule.text.endswith("aaa/scout: deny sto.write")
    assert len(rule.text) < 160  # of which the audit log keeps so much
