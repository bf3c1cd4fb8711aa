"""Plans: what the grammar leaves, what is refused, what runs at once, what is not done again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from byte_grammar import drawn
from conftest import eventually, run_system
from helpers import visiting
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SUPPORT
from school import add, capital, divide, note, story

from aios.agents import Aios
from aios.agents.reasoning.plan import Plan, Step, check, grammar
from aios.agents.reasoning.planner import Planner, StepResult
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, TooBig
from aios.syscalls.tool import Spec

TOOLS = {each.name: each.spec() for each in (add, capital, divide, story, note)}
TELLER = Spec(
    name="teller",
    description="Tell of something.",
    schema={
        "type": "object",
        "properties": {"about": {"type": "string"}, "long": {"type": "boolean"}},
        "required": ["about"],
        "additionalProperties": False,
    },
)


@pytest.fixture(scope="module")
def school(homes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    place = str(tmp_path_factory.getbasetemp())
    settings = {
        "slots": 1, "ctx": 1024, "grace": 0.5,
        "walls": {"read": [place], "write": [place]},
        "tools": {"school": {"program": str(SUPPORT / "school.py")}},
    }  # fmt: skip
    yield from run_system(homes / "plans", settings)


@pytest.fixture
def aios(school: System) -> Iterator[Aios]:
    with visiting(school) as aios:
        yield aios


# --- what a plan is -----------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_every_plan_that_the_grammar_leaves_can_be_carried_out(seed: int) -> None:
    agents = {"teller": TELLER}
    plan = msgspec.json.decode(drawn(grammar(3, TOOLS, agents), seed), type=Plan)
    check(plan, TOOLS, agents)
    assert [step.id for step in plan.steps] == ["s1", "s2", "s3"][: len(plan.steps)]
    for step in plan.steps:
        spec = TOOLS[step.tool] if step.tool else agents[step.agent]
        given = {key: value for key, value in step.args.items() if not isinstance(value, dict)}
        fields = {key: kind for key, kind in spec.schema["properties"].items() if key in given}
        jsonschema.validate(given, {**spec.schema, "properties": fields, "required": []})


def test_a_step_may_have_the_results_of_those_before_it() -> None:
    held = grammar(2, {"school.add": TOOLS["school.add"]}, {})
    plans = [msgspec.json.decode(drawn(held, seed), type=Plan) for seed in range(60)]
    assert {len(plan.steps) for plan in plans} == {1, 2}
    assert {frozenset(plan.steps[1].needs) for plan in plans if len(plan.steps) > 1} == {
        frozenset(), frozenset({"s1"}),
    }  # fmt: skip


SUM: dict[str, Any] = {"tool": "school.add", "args": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([{"id": "a", **SUM}, {"id": "a", **SUM}], "step 'a' is there twice"),
        ([{"id": "a"}], "step 'a' takes a tool or an agent"),
        ([{"id": "a", **SUM, "agent": "teller"}], "step 'a' takes a tool or an agent"),
        ([{"id": "a", "tool": "sub"}], "step 'a' asks for 'sub', which there is not"),
        ([{"id": "a", "tool": "school.add", "args": {"a": 1}}], "step 'a' lacks 'b'"),
        (
            [{"id": "a", "tool": "school.add", "args": {"a": 1, "b": 2, "c": 3}}],
            "step 'a' has 'c', which is not taken",
        ),
        ([{"id": "a", **SUM, "after": ["b"]}], "step 'a' waits for 'b', which there is not"),
        (
            [{"id": "a", **SUM, "after": ["b"]}, {"id": "b", **SUM, "after": ["a"]}],
            "steps wait for each other",
        ),
        (
            [{"id": "a", "tool": "school.add", "args": {"a": {"result_of": "a"}, "b": 1}}],
            "steps wait for each other: a <- a",
        ),
    ],
)
def test_what_cannot_be_carried_out_is_refused(steps: list[dict[str, Any]], said: str) -> None:
    plan = msgspec.convert({"steps": steps}, Plan)
    with pytest.raises(BadInput, match=said):
        check(plan, TOOLS, {"teller": TELLER})


def test_a_plan_that_no_grammar_holds() -> None:
    with pytest.raises(TooBig, match="plans of 60 steps with 5 tools take a grammar of"):
        grammar(60, TOOLS, {})


# --- carried out --------------------------------------------------------------------------------


def planner(aios: Aios, **options: Any) -> Planner:
    names = [f"school.{name}" for name in ("add", "divide", "capital", "note", "wait_for", "stall")]
    return Planner(aios, only=names, **options)


def run(aios: Aios, *steps: Step, name: str = "p") -> dict[str, tuple[str, Any]]:
    ends = planner(aios).execute(Plan(list(steps)), name)
    return {id: (end.state, end.value) for id, end in ends.items()}


def test_results_go_where_they_are_referred_to(aios: Aios) -> None:
    ends = run(
        aios,
        Step(id="c", tool="school.add", args={"a": {"result_of": "a"}, "b": {"result_of": "b"}}),
        Step(id="a", tool="school.add", args={"a": 1, "b": 2}),
        Step(id="b", tool="school.add", args={"a": {"result_of": "a"}, "b": 10}),
    )
    assert ends == {"a": ("done", 3), "b": ("done", 13), "c": ("done", 16)}


def test_what_waits_for_nothing_runs_at_once(aios: Aios, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    ends = run(
        aios,
        Step(id="a", tool="school.wait_for", args={"path": one, "say": two}),
        Step(id="b", tool="school.wait_for", args={"path": two, "say": one}),
    )
    assert ends == {"a": ("done", one), "b": ("done", two)}


def test_what_fails_holds_up_what_needs_it_and_nothing_else(aios: Aios) -> None:
    steps = [
        Step(id="zero", tool="school.divide", args={"a": 1, "b": 0}),
        Step(id="next", tool="school.add", args={"a": {"result_of": "zero"}, "b": 1}),
        Step(id="last", tool="school.add", args={"a": 1, "b": 1}, after=["next"]),
        Step(id="part", tool="school.add", args={"a": {"result_of": "sum", "at": [0]}, "b": 1}),
        Step(id="kind", tool="school.add", args={"a": {"result_of": "city"}, "b": 1}),
        Step(id="city", tool="school.capital", args={"country": "Japan"}),
        Step(id="sum", tool="school.add", args={"a": 2, "b": 2}),
    ]
    ends = planner(aios).execute(Plan(steps), "p")
    assert {id: end.state for id, end in ends.items()} == {
        "zero": "failed", "next": "skipped", "last": "skipped", "part": "failed",
        "kind": "failed", "city": "done", "sum": "done",
    }  # fmt: skip
    assert "ZeroDivisionError" in ends["zero"].error
    assert ends["part"].error == "the result of sum has no 0"
    assert "school.add" in ends["kind"].error  # the tool's own look at its arguments


def test_a_result_that_is_stored(aios: Aios) -> None:
    text = json.dumps({"rows": [[1, "a"]]})
    ends = {}
    for name, data in (("rows", text.encode()), ("raw", b"\xff")):
        aios.sto_put(f"tools/results/{name}", data)
        ends[name] = StepResult(state="done", value="how it begins", stored=f"tools/results/{name}")
    resolved = planner(aios).resolved
    assert resolved([{"result_of": "rows"}], ends) == [text]
    assert resolved({"x": {"result_of": "rows", "at": ["rows", 0, 1]}}, ends) == {"x": "a"}
    with pytest.raises(BadInput, match="the result of rows has no 'none'"):
        resolved({"result_of": "rows", "at": ["none"]}, ends)
    for at, what in (([], "text"), ([0], "JSON")):
        with pytest.raises(BadInput, match=f"the result of raw is no {what}"):
            resolved({"result_of": "raw", "at": at}, ends)


def test_agents_are_steps_as_well(aios: Aios, program: Any) -> None:
    teller = program("return {'told': task['about'] * 2}")
    agents = [msgspec.structs.replace(TELLER, name=teller)]
    broken = [msgspec.structs.replace(TELLER, name=program("raise SystemExit('no')"))]
    plan = Plan(
        [
            Step(id="a", agent=teller, args={"about": "cat"}),
            Step(id="b", agent=teller, args={"about": {"result_of": "a", "at": ["told"]}}),
            Step(id="c", agent=broken[0].name, args={"about": "cat"}),
        ]
    )
    ends = planner(aios, agents=[*agents, *broken]).execute(plan, "p")
    assert ends["a"].value == {"told": "catcat"}
    assert ends["b"].value == {"told": "catcatcatcat"}
    assert (ends["c"].state, "ended with 1 (exit)" in ends["c"].error) == ("failed", True)


# --- what is not done again ---------------------------------------------------------------------

RIGHTS = {"allow": ["tool", "mem", "llm"]}
RESUME = """
import msgspec
from aios.agents.reasoning.plan import Plan
from aios.agents.reasoning.planner import StepResult, Planner
names = ["school.note", "school.wait_for", "school.stall", "school.divide"]
ends = Planner(aios, only=names).execute(msgspec.convert(task, Plan), "resumed")
return {id: end.state for id, end in ends.items()}
"""
KEEP = "aios.mem_keep()\n"


def start(aios: Aios, program: Any, plan: Plan) -> int:
    task = msgspec.to_builtins(plan)
    return aios.spawn(program(KEEP + RESUME.strip()), task, name="resumer", manifest=RIGHTS)


def until(aios: Aios, pid: int, path: str) -> None:
    """Wait for a file that an agent makes; what it prints, and it prints nothing, says why not."""
    eventually(lambda: Path(path).exists() or aios.log(pid).data)
    assert aios.log(pid).data == b""


def test_a_killed_agent_goes_on_and_repeats_nothing(
    aios: Aios, program: Any, tmp_path: Path
) -> None:
    notes, gate, here = (str(tmp_path / name) for name in ("notes", "gate", "here"))
    plan = Plan(
        [
            Step(id="one", tool="school.note", args={"path": notes, "text": "one"}),
            Step(
                id="gate", tool="school.wait_for", args={"path": gate, "say": here}, after=["one"]
            ),
            Step(
                id="two", tool="school.note", after=["gate"],
                args={"path": notes, "text": {"result_of": "one"}},
            ),
        ]
    )  # fmt: skip
    pid = start(aios, program, plan)
    until(aios, pid, here)
    aios.kill(pid, "KILL")
    assert aios.wait(pid).code == 137
    Path(gate).touch()
    end = aios.wait(start(aios, program, plan), timeout=60)
    assert end.result == {"one": "done", "gate": "done", "two": "done"}
    assert Path(notes).read_text() == "one\none\n"  # the second is step two
    end = aios.wait(start(aios, program, plan), timeout=60)
    assert end.result == {"one": "done", "gate": "done", "two": "done"}
    assert Path(notes).read_text() == "one\none\n"
    aios.mem_clear(principal="/resumer")


def test_what_may_have_happened_is_unknown_and_not_done_again(
    aios: Aios, program: Any, tmp_path: Path
) -> None:
    notes = str(tmp_path / "notes")
    plan = Plan(
        [
            Step(id="stall", tool="school.stall", args={"path": notes, "text": "once"}),
            Step(
                id="next", tool="school.note", args={"path": notes, "text": "no"}, after=["stall"]
            ),
        ]
    )
    pid = start(aios, program, plan)
    until(aios, pid, notes + ".here")
    aios.kill(pid, "KILL")
    aios.wait(pid)
    for _ in range(2):
        end = aios.wait(start(aios, program, plan), timeout=60)
        assert end.result == {"stall": "unknown", "next": "skipped"}
    assert Path(notes).read_text() == "once\n"
    aios.mem_clear(principal="/resumer")


# --- made by the model --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_model_s_plans_are_carried_out(aios: Aios, seed: int) -> None:
    maker = Planner(aios, only=["school.add", "school.capital"], most=3, temperature=0.8, seed=seed)
    task = "Add 3 and 4, then add 5 to the result, and say what the capital of Italy is."
    ends = maker.run(task)
    assert 1 <= len(ends) <= 3
    assert any(end.state == "done" for end in ends.values())
    assert all(end.error for end in ends.values() if end.state == "failed")
    assert maker.run(task) == ends  # the plan that was made, and what was done
