"""The planner: it makes plans, and carries them out with steps in parallel.

from aios.agents.reasoning import Planner

ends = Planner(aios, only=["sql.query", "files.write"]).run("Count the orders; write it down.")

Results of steps are kept in the agent's memory: an agent that is killed, and started again under
its name, continues, and repeats no finished step.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Literal

import msgspec
from msgspec import Struct

from aios.agents.sdk.aios import Aios
from aios.agents.sdk.connection import Pending
from aios.agents.sdk.tools import ToolCall
from aios.syscalls.errors import BadInput, NoProgram, ProcessGone, ToolUnknown
from aios.syscalls.proc import Exited
from aios.syscalls.tool import Spec

from .plan import Plan, Step, check, grammar
from .tool_dialogue import MENDABLE, chosen, signature

MEMORY_SPACE = "plan"  # of the agent's memory
SYSTEM = """\
Plan how to do the task: a list of steps, each with one tool. An argument that is the result of an
earlier step is {"result_of": ID}.
Tools:
"""

FAILURES = (*MENDABLE, NoProgram, ProcessGone)  # of one step: others go on

Call = ToolCall | Pending


class StepResult(Struct, kw_only=True, omit_defaults=True):
    """The result of a step. `unknown`: it changes something and was interrupted, so it may have
    happened, and is not repeated. `skipped`: a step that it needs was not done."""

    state: Literal["started", "done", "failed", "unknown", "skipped"]
    value: Any = None
    stored: str = ""  # the path of all of it, where `value` is how it begins
    owner: str = ""  # whose path
    error: str = ""


class Planner:
    """A planner with the tools that the agent may call, or only those named, and with `agents`:
    programs, each with the schema of its task. A plan has at most `most` steps. `options` are those
    of generate.

    Raises:
        NotFound: there is no tool that `only` names. ToolFailed: its toolbox did not start.
    """

    def __init__(
        self, aios: Aios, *, only: Sequence[str] | None = None, agents: Sequence[Spec] = (),
        most: int = 4, **options: Any,
    ) -> None:  # fmt: skip
        self.aios, self.most = aios, most
        self.options = {"max_tokens": 600, **options}
        self.tools = {spec.name: spec for spec in chosen(aios, only)}
        self.agents = {spec.name: spec for spec in agents}

    def run(self, task: str) -> dict[str, StepResult]:
        """Plan a task, carry the plan out, and return the results of its steps. A task that was
        begun before goes on with its plan: failed steps are repeated, finished ones are not.

        Raises:
            BadGrammar, TooBig: no grammar can keep the schemas.
            NotJson: the plan is longer than `max_tokens`.
        """
        if self.aios.welcome.kind == "agent":
            self.aios.mem_keep()
        name = blake2b(task.encode(), digest_size=8).hexdigest()
        for kept in self.aios.mem_get([name], space=MEMORY_SPACE).values():
            return self.execute(msgspec.convert(kept, Plan), name)
        plan = self.plan(task)
        self.aios.mem_put({name: msgspec.to_builtins(plan)}, space=MEMORY_SPACE)
        return self.execute(plan, name)

    def plan(self, task: str) -> Plan:
        """Have the model make a plan; the grammar allows only plans that can be carried out."""
        lines = "\n".join(map(signature, [*self.tools.values(), *self.agents.values()]))
        messages = [
            {"role": "system", "content": SYSTEM + lines},
            {"role": "user", "content": task},
        ]
        held = grammar(self.most, self.tools, self.agents)
        plan = msgspec.convert(
            self.aios.generate(messages, grammar=held, **self.options).json, Plan
        )
        check(plan, self.tools, self.agents)
        return plan

    def execute(self, plan: Plan, name: str) -> dict[str, StepResult]:
        """Carry out any plan. `name` tells it from others in the agent's memory.

        Raises:
            BadInput: it cannot be carried out.
        """
        check(plan, self.tools, self.agents)
        steps = {step.id: step for step in plan.steps}
        before = {
            key.removeprefix(f"{name}/"): msgspec.convert(end, StepResult)
            for key, end in self.aios.mem_items(f"{name}/", space=MEMORY_SPACE)
        }
        ends: dict[str, StepResult] = {}
        running: dict[str, Call] = {}
        order = plan.order()
        while order.is_active():
            for id in order.get_ready():
                begun = self.begin(steps[id], ends, before.get(id), f"{name}/{id}")
                if isinstance(begun, StepResult):
                    ends[id] = begun
                    order.done(id)
                else:
                    running[id] = begun
            if running and not any(call.ended for call in running.values()):
                self.aios.connection.pump()
            for id in [id for id, call in running.items() if call.ended]:
                ends[id] = self.keep(f"{name}/{id}", outcome(running.pop(id)))
                order.done(id)
        return ends

    def begin(
        self, step: Step, ends: dict[str, StepResult], before: StepResult | None, key: str
    ) -> Call | StepResult:
        """Start a step, unless it has a result already, or cannot start."""
        state = before.state if before is not None else "failed"
        if before is not None and state in ("done", "unknown"):
            return before
        if state == "started":
            return self.keep(key, StepResult(state="unknown", error="it was interrupted"))
        if any(ends[other].state != "done" for other in step.needs):
            return StepResult(state="skipped")
        try:
            args = self.resolved(step.args, ends)
            if step.agent:
                return self.aios.start("proc.wait", pid=self.aios.spawn(step.agent, args))
            if self.tools[step.tool].effect:
                self.keep(key, StepResult(state="started"))
            return self.aios.call_tool(step.tool, args)
        except FAILURES as error:
            return self.keep(key, StepResult(state="failed", error=str(error)))

    def keep(self, key: str, end: StepResult) -> StepResult:
        self.aios.mem_put({key: msgspec.to_builtins(end)}, space=MEMORY_SPACE)
        return end

    def resolved(self, value: Any, ends: dict[str, StepResult]) -> Any:
        """Replace references in arguments by the results that they refer to.

        Raises:
            BadInput: a result has no such part, or is stored and no text.
        """
        if isinstance(value, list):
            return [self.resolved(item, ends) for item in value]
        if not isinstance(value, dict):
            return value
        if "result_of" not in value:
            return {key: self.resolved(item, ends) for key, item in value.items()}
        end, parts = ends[value["result_of"]], value.get("at", [])
        found = end.value
        if end.stored:
            data = self.aios.sto_get(end.stored, owner=end.owner or None)
            try:
                found = msgspec.json.decode(data) if parts else data.decode()
            except (UnicodeDecodeError, msgspec.DecodeError) as error:
                kind = "JSON" if parts else "text"
                raise BadInput(f"the result of {value['result_of']} is no {kind}") from error
        for part in parts:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError) as error:
                raise BadInput(f"the result of {value['result_of']} has no {part!r}") from error
        return found


def outcome(call: Call) -> StepResult:
    """Return the result of an ended call."""
    try:
        if isinstance(call, ToolCall):
            result = call.result()
            return StepResult(
                state="done", value=result.value, stored=result.stored, owner=result.owner
            )
        child = msgspec.convert(call.wait(), Exited)
    except ToolUnknown as error:
        return StepResult(state="unknown", error=str(error))
    except FAILURES as error:
        return StepResult(state="failed", error=str(error))
    if child.code:
        why = f"{child.name} ended with {child.code} ({child.reason}): {child.result}"
        return StepResult(state="failed", error=why)
    return StepResult(state="done", value=child.result)
