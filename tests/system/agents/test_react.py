"""A model that calls tools: the real model, real workers, and what the loop does about both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jsonschema
import pytest
from conftest import EMBEDDED, run_system
from helpers import visiting
from places import SUPPORT

from aios.agents import Aios
from aios.agents.reasoning.react import REPEATED, LoopLimits, LoopStep, Outcome, ReAct
from aios.agents.reasoning.tool_dialogue import Choice, ModelAnswer, ToolCallRequest, chosen
from aios.shell.launch import System
from aios.syscalls.errors import AiosError, ContextFull, LimitReached, NotFound, ToolFailed
from aios.syscalls.tool import Spec, ToolResult, Tools

SCHOOL = str(SUPPORT / "school.py")
SHORT = LoopLimits(steps=2, answer=128)


TOOLS = {"school": {"program": SCHOOL}}


@pytest.fixture(scope="module")
def school(homes: Path) -> Iterator[System]:
    settings = {"slots": 1, "ctx": 2048, "grace": 0.5, "tools": TOOLS}
    yield from run_system(homes / "school", settings)


@pytest.fixture
def aios(school: System) -> Iterator[Aios]:
    yield from left_whole(school)


@pytest.fixture(scope="module")
def pupil(homes: Path) -> Iterator[System]:
    """A system whose model knows what is asked."""
    settings = {"model": EMBEDDED, "slots": 1, "ctx": 1024, "grace": 0.5, "tools": TOOLS}
    yield from run_system(homes / "pupil", settings)


@pytest.fixture
def knowing(pupil: System) -> Iterator[Aios]:
    yield from left_whole(pupil)


def left_whole(system: System) -> Iterator[Aios]:
    with visiting(system) as aios:
        yield aios
        assert aios.status().contexts == 0


@pytest.mark.parametrize(
    "given", [{"fixed": {"school.ad": {"a": 7}}}, {"examples": [("1 and 2?", "school.ad", {})]}]
)
def test_a_tool_that_the_model_has_not_is_no_silence(given: dict[str, Any]) -> None:
    """Or the model would choose what is not its to choose."""
    spec = Spec(name="school.add", description="", schema={"type": "object"})
    aios: Any = Mock(toolboxes=lambda: Tools(tools=[spec], boxes=[]))
    with pytest.raises(NotFound, match=r"no tool 'school\.ad' \(it has: school\.add\)"):
        ReAct(aios, **given)


def test_it_calls_a_tool_and_answers(knowing: Aios) -> None:
    agent = ReAct(knowing, only=["school.capital", "school.add"], must_call=True, limits=SHORT)
    outcome = agent.run("What is the capital of Italy?")
    first = outcome.calls[0]
    assert (first.request.name, first.request.args) == ("school.capital", {"country": "Italy"})
    assert isinstance(first.end, ToolResult) and first.end.value == first.shown == "Rome"
    assert "Rome" in outcome.answer
    assert outcome.ended == "answer" or outcome.answer
    assert outcome.tokens > 0


def test_calls_in_one_answer_are_made_at_once(knowing: Aios) -> None:
    agent = ReAct(knowing, only=["school.capital"], must_call=True, limits=SHORT)
    outcome = agent.run("What are the capitals of France and Japan?")
    first = {call.request.args["country"]: call.shown for call in outcome.steps[0].calls}
    assert {"France": "Paris", "Japan": "Tokyo"}.items() <= first.items()
    assert len(outcome.steps[0].calls) == len(first)  # none was made twice


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_drawn_the_calls_fit_and_there_is_an_answer(aios: Aios, seed: int) -> None:
    limits = LoopLimits(steps=2, calls=3, answer=160)
    agent = ReAct(aios, must_call=True, limits=limits, temperature=1.0, seed=seed)
    schemas = {spec.name: spec.schema for spec in aios.tools()}
    outcome = agent.run("Use the tools of the school, each of them.")
    assert len(outcome.steps) <= 2 and outcome.answer
    made = [call for call in outcome.calls if not isinstance(call.end, LimitReached)]
    assert len(made) <= 3
    for call in outcome.calls:
        jsonschema.validate(call.request.args, schemas[call.request.name])


# --- what the model answers is given here, all else is real -------------------------------------


class Scripted(ReAct):
    """Generates, and then goes on as if the model had said the next of `lines`."""

    def script(self, *lines: list[tuple[str, dict[str, Any]]] | str) -> Outcome:
        rest = iter(lines)

        def parse(_text: str) -> ModelAnswer:
            line = next(rest)
            if isinstance(line, str):
                return ModelAnswer(line, [])
            calls = [ToolCallRequest(str(n), name, args) for n, (name, args) in enumerate(line, 1)]
            return ModelAnswer("", calls)

        vars(self.talk)["parse"] = parse
        return self.run("Do it.")


def scripted(aios: Aios, **limits: Any) -> Scripted:
    only = ["school.add", "school.divide", "school.story"]
    return Scripted(aios, only=only, limits=LoopLimits(**{"answer": 16, **limits}))


def ends(outcome: Outcome) -> list[ToolResult | AiosError]:
    return [call.end for call in outcome.calls]


def test_what_goes_wrong_with_a_call_is_told_and_it_goes_on(aios: Aios) -> None:
    outcome = scripted(aios).script(
        [("school.divide", {"a": 1, "b": 0}), ("school.add", {"a": 1, "b": "x"})],
        [("school.gone", {}), ("school.add", {"a": 1, "b": 2})],
        "Done.",
    )
    failed, wrong, gone, three = outcome.calls
    assert isinstance(failed.end, ToolFailed)
    assert failed.shown == "error: ZeroDivisionError: division by zero"
    assert isinstance(wrong.end, AiosError) and wrong.end.code == "tool.arguments"
    assert isinstance(gone.end, NotFound) and gone.shown.startswith("error: ")
    assert isinstance(three.end, ToolResult) and three.shown == "3"
    assert (outcome.answer, outcome.ended) == ("Done.", "answer")


def test_a_long_result_is_cut_and_all_of_it_is_in_storage(aios: Aios) -> None:
    calls = [("school.story", {"words": words}) for words in (20, 600, 8000)]
    outcome = scripted(aios, shown=300).script([*calls], "Done.")
    short, stored, long = outcome.calls
    assert short.shown == " ".join(f"word{n}" for n in range(20))
    for call, words in ((stored, 600), (long, 8000)):
        begin, _, path = call.shown.partition("\n[this is how it begins; all of it is stored as ")
        text = aios.sto_get(path.removesuffix("]")).decode()
        text = json.loads(text) if text.startswith('"') else text
        assert text.split() == [f"word{n}" for n in range(words)]
        assert len(begin) == 300 and text.startswith(begin)


def test_who_may_not_store_a_long_result_reads_how_it_begins(aios: Aios, program: Any) -> None:
    asks = program(
        "from aios.agents.reasoning import LoopLimits, ReAct\n"
        "limits = LoopLimits(steps=1, shown=100, answer=64)\n"
        "fixed = {'school.story': {'words': 600}}\n"
        "agent = ReAct(aios, only=[*fixed], fixed=fixed, must_call=True, limits=limits)\n"
        "outcome = agent.run('Tell me a story.')\n"
        "return [call.shown for call in outcome.calls], outcome.answer"
    )
    end = aios.wait(aios.spawn(asks, manifest={"allow": ["tool", "llm"]}), timeout=60)
    assert end.code == 0, end.result
    (shown,), answer = end.result
    assert shown.startswith("word0 word1 ")
    assert "\n[this is how it begins; the rest cannot be stored: " in shown
    assert answer


def test_results_leave_room_for_an_answer(aios: Aios) -> None:
    calls = [("school.story", {"words": words}) for words in range(700, 704)]
    outcome = scripted(aios, answer=200, shown=9000).script([*calls], "Done.")
    assert sum(len(call.shown) for call in outcome.calls) < 2 * 2048
    assert outcome.ended == "window"


def test_calls_beyond_the_limit_are_refused(aios: Aios) -> None:
    calls = [("school.add", {"a": n, "b": 1}) for n in range(4)]
    outcome = scripted(aios, calls=3).script([*calls], "Done.")
    assert [isinstance(end, LimitReached) for end in ends(outcome)] == [False] * 3 + [True]
    assert outcome.ended == "calls"


@pytest.mark.parametrize(
    ("limits", "ended"),
    [({"steps": 1}, "steps"), ({"tokens": 16}, "tokens"), ({"seconds": 0.0}, "seconds")],
)
def test_where_a_limit_is_reached_it_may_only_answer(
    aios: Aios, limits: dict[str, Any], ended: str
) -> None:
    agent = scripted(aios, **limits)
    asked: list[str] = []
    grammar = agent.talk.grammar

    def watched(choice: Choice) -> str:
        asked.append(choice)
        return grammar(choice)

    vars(agent.talk)["grammar"] = watched
    lines: list[Any] = [[("school.add", {"a": 1, "b": 1})], "Done."]
    outcome = agent.script(*(lines[1:] if ended == "seconds" else lines))
    assert (outcome.ended, outcome.answer) == (ended, "Done.")
    assert asked[-1] == "answer" and "answer" not in asked[:-1]


def test_a_model_that_repeats_itself_is_stopped(aios: Aios) -> None:
    same = [("school.add", {"a": 1, "b": 1})]
    outcome = scripted(aios).script([*same, *same], same, "Two.")
    assert len(outcome.calls) == 1
    assert outcome.steps[1] == LoopStep("", [], REPEATED)
    assert (outcome.ended, outcome.answer) == ("repeated", "Two.")


def test_a_call_that_was_cut_is_told_of(aios: Aios) -> None:
    agent = ReAct(aios, must_call=True, limits=LoopLimits(steps=2, answer=12), only=["school.add"])
    outcome = agent.run("How much is 1 + 1?")
    assert [step.calls for step in outcome.steps] == [[], []] or outcome.steps[0].calls == []
    assert "cut within a call" in outcome.steps[0].problem
    assert outcome.answer


def test_a_task_that_is_too_long_is_nothing_the_model_can_mend(aios: Aios) -> None:
    with pytest.raises(ContextFull):
        ReAct(aios, only=["school.add"]).run("word " * 2000)


def test_tools_that_are_named(aios: Aios) -> None:
    assert [spec.name for spec in chosen(aios, ["school.story", "school.add"])] == [
        "school.story", "school.add",
    ]  # fmt: skip
    with pytest.raises(NotFound, match=r"no tool 'school\.sub'") as caught:
        chosen(aios, ["school.sub"])
    assert "school.add" in caught.value.hint


def test_a_tool_that_is_not_granted_is_not_said_to_be_missing(
    aios: Aios, program: Callable[[str], str]
) -> None:
    asks = program(
        "from aios.agents.reasoning.tool_dialogue import chosen\n"
        "found = [spec.name for spec in chosen(aios, ['school.add'])]\n"
        "for name in ('school.note', 'nosuch.add'):\n"
        "    try:\n        chosen(aios, [name])\n"
        "    except AiosError as error:\n        found += [error.code, str(error)]\n"
        "return found"
    )
    manifest = {"allow": ["tool.list", "tool.call school.add"]}
    name, code, says, other, _ = aios.wait(aios.spawn(asks, manifest=manifest)).result
    assert (name, code, other) == ("school.add", "access.denied", "not_found")
    assert "nothing grants this agent the tool 'school.note': it takes the right tool.call" in says
    assert 'allow = ["tool.call school.note"]' in says
