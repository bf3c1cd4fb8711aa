"""Forks, checkpoints, contexts that sleep: through system calls, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import core_stopped
from helpers import end, running

from aios.agents import Aios, Context, connect
from aios.kernel.llm.contexts import MAX_CHECKPOINTS
from aios.shell.launch import System
from aios.syscalls.errors import ContextBusy, LimitReached, NotFound

SYSTEM = "You are terse."
OPTIONS: dict[str, Any] = {"max_tokens": 12, "digest": True, "ignore_eos": True}


def ask(context: Context, line: str | None = None) -> tuple[list[int], str | None]:
    answer = context.generate(line, **OPTIONS).result()
    return answer.tokens, answer.digest


def alone(aios: Aios, *lines: str) -> tuple[list[int], str | None]:
    """The last answer of a conversation that nothing was done to."""
    with aios.open(SYSTEM) as context:
        return [ask(context, line) for line in lines][-1]


def test_a_fork_and_its_origin_go_on_apart(aios: Aios) -> None:
    one = alone(aios, "Name a color.", "Another.")
    other = alone(aios, "Name a color.", "Name a fruit.")
    with aios.open(SYSTEM) as context:
        ask(context, "Name a color.")
        with context.fork() as copy:
            assert ask(copy, "Name a fruit.") == other
            assert ask(context, "Another.") == one
        assert aios.status().contexts == 1


def test_a_second_attempt_from_the_middle_of_an_answer(aios: Aios) -> None:
    """The last token drawn was never computed with: both go on from it."""
    with aios.open(SYSTEM) as context:
        ask(context, "Count.")
        with context.fork() as copy:
            assert ask(copy) == ask(context)


def test_rollback_is_as_if_nothing_had_been(aios: Aios) -> None:
    wanted = alone(aios, "Name a color.", "Another.")
    with aios.open(SYSTEM) as context:
        ask(context, "Name a color.")
        used = context.checkpoint("colors").used
        ask(context, "Forget colors. " * 20)
        assert context.rollback("colors").used == used
        assert ask(context, "Another.") == wanted
        context.rollback("colors")
        assert ask(context, "Another.") == wanted
        own = [info.checkpoints for info in aios.contexts() if info.ctx == context.id]
        assert own == [["colors"]]  # others may be asleep


def test_rollback_to_a_name_that_is_not_there(aios: Aios) -> None:
    with aios.open(SYSTEM) as context:
        context.checkpoint("here")
        before = aios.contexts()
        with pytest.raises(NotFound, match=r"no checkpoint 'there' \(it has: here\)"):
            context.rollback("there")
        assert aios.contexts() == before


def test_checkpoints_are_bounded(aios: Aios) -> None:
    with aios.open(SYSTEM) as context:
        for number in range(MAX_CHECKPOINTS):
            context.checkpoint(f"c{number}")
        context.checkpoint("c0")
        with pytest.raises(LimitReached):
            context.checkpoint("one-more")


def test_a_fork_past_the_limit_changes_nothing(aios: Aios, program: Callable[[str], str]) -> None:
    path = program(
        "context = aios.open()\n"
        "copy = context.fork()\n"
        "try:\n    context.fork()\n"
        "except AiosError as error:\n    return [error.code, len(aios.contexts())]"
    )
    assert aios.wait(aios.spawn(path, limits={"contexts": 2})).result == ["limit", 2]


def test_what_generates_cannot_be_forked(aios: Aios, system: System) -> None:
    with aios.open(SYSTEM) as context:
        context.append("Tell a story.")
        with core_stopped(system):
            call = context.generate([7], max_tokens=400, ignore_eos=True)
            for attempt in (context.fork, lambda: context.checkpoint("x")):
                with pytest.raises(ContextBusy):
                    attempt()
        call.abandon()


def test_a_child_goes_on_with_forks_of_its_parent(
    aios: Aios, program: Callable[[str], str]
) -> None:
    path = program(
        "answers = []\n"
        "for context in aios.inherited():\n"
        "    answer = context.generate(task, max_tokens=12, digest=True, ignore_eos=True)\n"
        "    answers.append([answer.tokens, answer.digest])\n"
        "return answers"
    )
    wanted = [alone(aios, line, "Another.") for line in ("Name a color.", "Name a fruit.")]
    with aios.open(SYSTEM) as one, aios.open(SYSTEM) as two:
        ask(one, "Name a color.")
        ask(two, "Name a fruit.")
        pid = aios.spawn(path, "Another.", contexts=[one, two])
        exited = aios.wait(pid)
        assert [tuple(answer) for answer in exited.result] == wanted
        assert ask(one, "Another.") == wanted[0]
        with pytest.raises(NotFound):
            aios.spawn(path, contexts=[Context(aios, 10**6)])


def test_a_name_is_its_process_name_s_own(aios: Aios, system: System) -> None:
    with aios.open(SYSTEM, name="diary") as context:
        ask(context, "Remember 42.")
        with pytest.raises(ContextBusy, match="is open in process"):
            aios.open(name="diary")
        with connect(system.home, "other") as other:
            theirs = other.open(name="diary")
            assert theirs.id != context.id
            theirs.close(forget=True)
    (info,) = [info for info in aios.contexts() if info.name == "diary"]
    assert (info.state, info.pid, info.owner) == ("asleep", 0, "test")
    again = aios.open(name="diary")
    assert again.id == info.ctx
    assert info.used in [each.used for each in aios.contexts()]
    again.close(forget=True)
    assert not [info for info in aios.contexts() if info.name == "diary"]


def test_an_agent_sees_its_own_and_its_principal_s(
    aios: Aios, program: Callable[[str], str]
) -> None:
    path = program(
        "aios.open(name='mine')\naios.open()\n"
        "aios.send('test', [[c.name, c.state] for c in aios.contexts()])\naios.recv()"
    )
    with aios.open(SYSTEM):
        pid = aios.spawn(path, name="writer")
        assert aios.recv().body == [["mine", "idle"], [None, "idle"]]
        end(aios, running(aios, pid).pid)
        second = aios.spawn(path, name="writer")
        assert aios.recv().body == [["mine", "idle"], [None, "idle"]]
        third = aios.spawn(path, name="reader")
        assert aios.recv().body == [["mine", "idle"], [None, "idle"]]
        for pid in (second, third):
            end(aios, pid)
    for owner in ("/writer", "/reader"):
        aios.open(name="mine", owner=owner).close(forget=True)
