"""Plans: graphs of steps, each a tool to call or an agent to start.

A step's arguments may refer to what others return: {"result_of": "s1", "at": ["rows", 0]}. It
starts when the steps that it needs have ended. planner.py carries plans out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from msgspec import Struct

from aios.syscalls.errors import BadInput, TooBig
from aios.syscalls.llm import MAX_GRAMMAR_CHARS
from aios.syscalls.tool import Spec

from .schemas import narrowed


class Step(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A tool to call with `args`, or an agent to start with them as its task."""

    id: str
    tool: str = ""
    agent: str = ""
    args: dict[str, Any] = {}
    after: list[str] = []  # steps that it waits for, besides those that it has results of

    @property
    def needs(self) -> set[str]:
        """The steps that it waits for."""
        return {*self.after, *references(self.args)}


class Plan(Struct, forbid_unknown_fields=True):
    steps: list[Step]

    def order(self) -> TopologicalSorter[str]:
        """Return the order of the steps. Raises BadInput if some wait for each other."""
        order = TopologicalSorter({step.id: step.needs for step in self.steps})
        try:
            order.prepare()
        except CycleError as error:
            raise BadInput(f"steps wait for each other: {' <- '.join(error.args[1])}") from error
        return order


Specs = Mapping[str, Spec]


def references(value: Any) -> Iterator[str]:
    """Iterate over the steps whose results a value refers to."""
    if isinstance(value, dict) and "result_of" in value:
        yield str(value["result_of"])
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from references(part)


def check(plan: Plan, tools: Specs, agents: Specs) -> None:
    """Check that a plan can be carried out. Tools check the values later.

    Raises:
        BadInput: it cannot; the message names the step, and the reason.
    """
    ids = [step.id for step in plan.steps]
    for step in plan.steps:
        for wrong in _wrong(step, ids, tools, agents):
            raise BadInput(f"step {step.id!r} {wrong}", "docs/reasoning.md says what a plan is")
    plan.order()


def _wrong(step: Step, ids: list[str], tools: Specs, agents: Specs) -> Iterator[str]:
    if ids.count(step.id) > 1:
        yield "is there twice"
    if bool(step.tool) == bool(step.agent):
        yield "takes a tool or an agent"
    spec = tools.get(step.tool) or agents.get(step.agent)
    if spec is None:
        yield f"asks for {step.tool or step.agent!r}, which there is not"
        return
    fields = spec.schema.get("properties", {})
    yield from (
        f"lacks {name!r}" for name in spec.schema.get("required", []) if name not in step.args
    )
    if spec.schema.get("additionalProperties") is False:
        yield from (f"has {name!r}, which is not taken" for name in step.args if name not in fields)
    yield from (f"waits for {other!r}, which there is not" for other in step.needs - {*ids})


def grammar(most: int, tools: Specs, agents: Specs) -> str:
    """Return GBNF of the plans of up to `most` steps: s1, s2, ... Each may refer to earlier ones
    only, so there are no cycles.

    Raises:
        BadGrammar: no grammar can keep a schema. TooBig: they do not fit into one call.
    """
    rest, rules = "", []
    for number in range(most, 0, -1):
        does = " | ".join(_does(number, tools, agents))
        begin = json.dumps(f'{{"id": "s{number}", ')
        rules.append(f'step{number} ::= {begin} ({does}) "}}"')
        rest = f' (", " step{number}{rest})?' if number > 1 else f" step1{rest}"
    begin = json.dumps('{"steps": [')
    text = "\n".join([f'root ::= {begin}{rest} "]}}"', *rules])
    if len(text) > MAX_GRAMMAR_CHARS:
        what = f"plans of {most} steps with {len(tools)} tools take"
        raise TooBig(
            f"{what} a grammar of {len(text)} characters, {MAX_GRAMMAR_CHARS} fit",
            "offer fewer tools, or fewer steps",
        )
    return text


def _does(number: int, tools: Specs, agents: Specs) -> Iterator[str]:
    """Iterate over the alternatives of a step: one for each tool and agent."""
    before = [f"s{earlier}" for earlier in range(1, number)]
    result = {
        "type": "object",
        "properties": {"result_of": {"enum": before}},
        "required": ["result_of"],
        "additionalProperties": False,
    }
    after = {"type": "array", "items": {"enum": before}, "maxItems": len(before)}
    end = f' ", \\"after\\": " %json {json.dumps(after)}' if before else ""
    for kind, specs in (("tool", tools), ("agent", agents)):
        for name, spec in specs.items():
            schema = narrowed(name, spec.schema)
            if before:
                fields = schema.get("properties", {}).items()
                schema["properties"] = {key: {"anyOf": [kind, result]} for key, kind in fields}
            begin = json.dumps(f'"{kind}": "{name}", "args": ')
            yield f"{begin} %json {json.dumps(schema)}{end}"
