"""A person is asked, where a rule says so: what is shown, and what an answer changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Boot
from doer import DOER, Agent, person_alone

from aios.agents import Aios, connect
from aios.syscalls.errors import BadInput, NotFound

Program = Callable[[str], str]


@pytest.fixture
def person(boot: Boot) -> Iterator[Aios]:
    yield from person_alone(boot)


@pytest.fixture
def agent(person: Aios, program: Program) -> Callable[..., Agent]:
    path = program(DOER)
    return lambda **how: Agent(person, path, **how)


@pytest.mark.parametrize(
    ("answer", "after"),
    [("once", ["done", None]), ("agent", ["done", "done"]), ("deny", ["access.denied", None])],
)
def test_a_person_is_asked(
    person: Aios, agent: Callable[..., Agent], answer: Any, after: list[str | None]
) -> None:
    asker = agent(name="asker", manifest={"allow": ["msg"], "ask": ["mem.write"]})
    put = "aios.mem_put({'a': 1}) or 'done'"
    questions = person.questions()
    person.send(asker.pid, put)
    question = next(questions)
    assert (question.principal, question.right, question.pid) == ("/asker", "mem.write", asker.pid)
    assert question.rule == "manifest of /asker: ask mem.write"
    person.answer(question.id, answer)
    assert asker.said() == after[0]
    with pytest.raises(NotFound, match="no question"):
        person.answer(question.id, "once")
    person.send(asker.pid, put)
    if after[1] is None:
        person.answer(next(questions).id, "deny")
        assert asker.said() == "access.denied"
    else:
        assert asker.said() == after[1]


def test_always_is_a_grant_that_can_be_revoked(person: Aios, agent: Callable[..., Agent]) -> None:
    manifest = {"allow": ["msg"], "ask": ["mem.write"]}
    first = agent(name="asker", manifest=manifest)
    questions = person.questions()
    person.send(first.pid, "aios.mem_put({'a': 1}) or 'done'")
    person.answer(next(questions).id, "always")
    assert first.said() == "done"
    second = agent(name="asker", manifest=manifest)
    assert second.does("aios.mem_put({'a': 1}) or 'done'") == "done"
    [grant] = person.grants()
    person.revoke(grant.id)
    person.send(second.pid, "aios.mem_put({'a': 1}) or 'done'")
    person.answer(next(questions).id, "deny")
    assert second.said() == "access.denied"


def test_a_question_names_all_that_a_call_is_about(
    person: Aios, agent: Callable[..., Agent]
) -> None:
    """A person approves exactly the objects shown, and all that the call does with them."""
    asker = agent(name="asker", manifest={"allow": ["msg"], "ask": ["sto"]})
    questions = person.questions()
    changes = [{"path": "notes/x", "data": b"1"}, {"path": "bank/orders", "data": b"2"}]
    person.send(asker.pid, f"len(aios.sto_batch({changes!r}))")
    question = next(questions)
    assert question.objects == ["/asker:notes/x", "/asker:bank/orders"]
    assert [(c["path"], c["data"]) for c in question.args["changes"]] == [
        ("notes/x", b"1"), ("bank/orders", b"2"),
    ]  # fmt: skip
    person.answer(question.id, "agent")
    assert asker.said() == 2
    assert [grant.on for grant in person.grants()] == [["/asker:notes/x", "/asker:bank/orders"]]
    assert asker.does("aios.sto_put('bank/orders', b'3').version") == 2
    person.send(asker.pid, "[v.path for v in aios.sto_list('notes')]")
    question = next(questions)
    assert question.objects == ["/asker:notes**"]
    person.answer(question.id, "agent")
    assert asker.said() == asker.does("[v.path for v in aios.sto_list('notes')]") == ["notes/x"]
    many = [{"path": f"n{n}", "data": b""} for n in range(65)]
    person.send(asker.pid, f"len(aios.sto_batch({many!r}))")
    question = next(questions)
    with pytest.raises(BadInput, match="once"):
        person.answer(question.id, "always")
    person.answer(question.id, "once")
    assert asker.said() == 65


def test_a_question_holds_all_of_what_a_call_was_given(
    person: Aios, agent: Callable[..., Agent]
) -> None:
    """However long: nothing that is approved is cut off, and nothing stands elsewhere."""
    asker = agent(name="asker", manifest={"allow": ["msg"], "ask": ["proc.spawn", "tool.call"]})
    questions = person.questions()
    command = f"echo harmless {'#' * 40_000}; rm -rf ~"
    for act, where in (
        ("aios.spawn('/bin/sh', args=['-c', {!r}], cwd='/x')", 1),
        ("aios.start('tool.call', name='python', args={{'code': {!r}}}).wait()", "code"),
    ):
        person.send(asker.pid, act.format(command))
        question = next(questions)
        assert question.args["args"][where] == command
        person.answer(question.id, "deny")
        assert asker.said() == "access.denied"
    assert question.objects == ["python"]


def test_the_right_that_a_person_is_asked_for_is_the_one_that_is_granted(
    person: Aios, agent: Callable[..., Agent]
) -> None:
    """A prompt that may hold control tokens takes a right of its own, not the call's."""
    asker = agent(name="asker", manifest={"allow": ["msg"], "ask": ["llm"]})
    questions = person.questions()
    person.send(asker.pid, "aios.generate([2, 1], max_tokens=1).result().finish and 'done'")
    question = next(questions)
    assert question.right == "llm.raw"
    person.answer(question.id, "agent")
    assert asker.said() == "done"
    assert [grant.right for grant in person.grants()] == ["llm.raw"]


def test_what_denies_when_a_person_answers_wins(person: Aios, agent: Callable[..., Agent]) -> None:
    asker = agent(name="asker", manifest={"allow": ["msg"], "ask": ["sto.write"]})
    questions = person.questions()
    person.send(asker.pid, "aios.sto_put('a', b'1').version")
    question = next(questions)
    person.set_group("late", {"members": ["/asker"], "deny": ["sto.write"]})
    person.answer(question.id, "once")
    assert asker.said() == "access.denied"
    person.set_group("late", None)
    first = agent(name="bank")
    sender = agent(name="sender", manifest={"allow": ["msg.recv"], "ask": ["msg.send"]})
    person.send(sender.pid, "aios.send('bank', '1')")
    person.answer(next(questions).id, "once")
    assert first.said() == 1
    person.answer(next(questions).id, "once")  # what it says to the test of its send
    assert sender.said() is None


def test_no_answer_in_time_means_deny(boot: Boot, program: Program) -> None:
    system = boot(slots=1, ask_timeout=0.2)
    with connect(system.home, "test") as aios:
        asker = Agent(aios, program(DOER), manifest={"allow": ["msg"], "ask": ["proc.list"]})
        assert asker.does("aios.ps()") == "access.denied"
        assert aios.check() == []
