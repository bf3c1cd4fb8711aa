"""A full window: what goes, what stays, what comes back, and that the caller sees it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Boot, run_system
from helpers import WINDOW, talk
from hypothesis import given
from hypothesis import strategies as st

from aios.agents import Aios, connect
from aios.kernel.llm.context_state import Turn
from aios.kernel.llm.window import relevant
from aios.shell.launch import System
from aios.syscalls.errors import ContextFull

SYSTEM = "You are terse."


@pytest.fixture(scope="module")
def narrow(homes: Path) -> Iterator[System]:
    yield from run_system(homes / "narrow", {"slots": 2, "ctx": WINDOW, "grace": 0.5})


@pytest.fixture
def aios(narrow: System) -> Iterator[Aios]:
    with connect(narrow.home, "test") as aios:
        yield aios
        assert aios.status().contexts == 0
        assert aios.check() == []


def test_error_is_the_default_and_loses_nothing(aios: Aios) -> None:
    with aios.open(SYSTEM) as context:
        context.append("word " * 100, raw=True)
        used = aios.contexts()[0].used
        with pytest.raises(ContextFull):
            context.append("word " * 100, raw=True)
        assert aios.contexts()[0].used == used
        assert aios.contexts()[0].on_full == "error"


def test_what_slides_out_is_gone_and_the_rest_is_as_if_it_had_never_been(aios: Aios) -> None:
    """The context that stays is like any other: the same messages anew go on alike."""
    with aios.open(SYSTEM, on_full="slide") as context:
        said: list[dict[str, str]] = [{"role": "system", "content": SYSTEM}]
        for number in range(20):
            line = f"Tell me one thing about the number {number}."
            answer = context.generate(line, max_tokens=16, digest=True).result()
            if answer.moved is not None:
                gone = len(answer.moved.dropped)
                del said[1 : 1 + gone]
                break
            said += [
                {"role": "user", "content": line},
                {"role": "assistant", "content": answer.text},
            ]
        with aios.open() as other:
            other.append(said)
            other.append(line)
            again = other.generate(max_tokens=16, digest=True).result()
        assert (again.tokens, again.digest) == (answer.tokens, answer.digest)


def test_text_without_turns_slides_too(aios: Aios) -> None:
    with aios.open(on_full="slide") as context:
        context.append("The beginning. " * 4, raw=True)
        dropped = []
        for number in range(20):
            appended = context.append(f"Line {number} says nothing at all. " * 3, raw=True)
            assert appended.used <= WINDOW
            if appended.moved is not None:
                assert [message.role for message in appended.moved.dropped] == ["text"]
                dropped.append(appended.moved.dropped[0].content)
        assert len(dropped) > 1
        assert "The beginning. The beginning." not in dropped[0]  # what comes first stays
        assert "Line 0" in dropped[0]
        assert "Line 0" not in "".join(dropped[1:])
        assert context.generate(max_tokens=3, ignore_eos=True).tokens


def test_text_between_messages_is_not_lost_unseen(aios: Aios) -> None:
    with aios.open(SYSTEM, on_full="slide") as context:
        context.generate("Hello.", max_tokens=4).result()
        context.append("The password is swordfish. " * 4, raw=True)
        seen = ""
        while "swordfish" not in seen:
            answer = context.generate("Go on. " * 10, max_tokens=8, ignore_eos=True).result()
            assert answer.usage.context <= WINDOW
            if answer.moved is not None:
                seen += "".join(message.content for message in answer.moved.dropped)


def test_what_can_never_fit_fails_and_changes_nothing(aios: Aios) -> None:
    with aios.open(SYSTEM, on_full="slide") as context:
        talk(context, 3)
        before = aios.contexts()
        with pytest.raises(ContextFull):
            context.append("word " * 300)
        assert aios.contexts() == before
        talk(context, 2)


def test_cancelled_while_it_sums_up(aios: Aios) -> None:
    with aios.open(SYSTEM, on_full="summarize") as context:
        for number in range(9):
            call = context.generate(f"What about {number}? " * 4, max_tokens=16, ignore_eos=True)
            if aios.status().contexts == 2:  # the one that the summary is made in
                call.abandon()
                break
            call.result()
        assert aios.status().contexts == 1
        assert context.generate("Go on.", max_tokens=4, ignore_eos=True).tokens


def test_a_kernel_that_dies_while_it_makes_room(boot: Boot) -> None:
    system = boot(slots=2, ctx=WINDOW)
    with connect(system.home) as aios:
        answers = []
        for kill in (False, True):
            with aios.open(SYSTEM, on_full="summarize") as context:
                for number in range(7):
                    call = context.generate(f"And {number}? " * 9, max_tokens=16, ignore_eos=True)
                    if kill:
                        os.kill(aios.status().os_pid, signal.SIGKILL)
                    answers.append(call.result())
        assert any(answer.moved for answer in answers)
        half = len(answers) // 2
        for one, other in zip(answers[:half], answers[half:], strict=True):
            assert (one.tokens, one.moved) == (other.tokens, other.moved)
        assert aios.check() == []


sentences = st.lists(st.sampled_from(["red", "green", "blue", "one", "two"]), max_size=6)


@given(sentences, st.lists(sentences, max_size=8))
def test_what_is_relevant_shares_a_word(text: list[str], turns: list[list[str]]) -> None:
    given_turns = [Turn("user", " ".join(words)) for words in turns]
    found = relevant(" ".join(text), given_turns)
    wanted = [turn for turn, words in zip(given_turns, turns, strict=True) if {*words} & {*text}]
    assert sorted(map(id, found)) == sorted(map(id, wanted))
