"""Plans carried out: what may run at once does, and what was done stays done.

from aios.agents.reasoning import Planner

ends = Planner(aios, only=["sql.query", "files.write"]).run("Count the orders; write it down.")

What steps came to is in the agent's memory: an agent that is killed, and started again under its
name, goes on where it was.
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

SPACE = "plan"  # of the agent's memory
SYSTEM = """\
Plan how to do the task: a list of steps, each with one tool. An argument that is the result of an
earlier step is {"result_of": ID}.
Tools:
"""

FAILURES = (*MENDABLE, NoProgram, ProcessGone)  # of one step: others go on

Call = ToolCall | Pending


class End(Struct, kw_only=True, omit_defaults=True):
    """What a step came to. `unknown`: it changes something and was interrupted, so it may have
    happened, and is not done again. `skipped`: what it waits for was not done."""

    state: Literal["started", "done", "failed", "unknown", "skipped"]
    value: Any = None
    stored: str = ""  # the path of all of it, where `value` is how it begins
    owner: str = ""  # whose path
    error: str = ""


class Planner:
    """Plans with the tools that the agent may call, or those that `only` names, and with `agents`:
    programs, each with the schema of its task. A plan has `most` steps. `options` are those of
    generate.

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

    def run(self, task: str) -> dict[str, End]:
        """Plan a task and carry it out; what each step came to. For a task that was begun before,
        the plan is the one made then: what was done is not repeated, what failed is.

        Raises:
            BadGrammar, TooBig: no grammar can keep the schemas.
            NotJson: the plan is longer than `max_tokens`.
        """
        if self.aios.welcome.kind == "agent":
            self.aios.mem_keep()
        name = blake2b(task.encode(), digest_size=8).hexdigest()
        for kept in self.aios.mem_get([name], space=SPACE).values():
            return self.execute(msgspec.convert(kept, Plan), name)
        plan = self.plan(task)
        self.aios.mem_put({name: msgspec.to_builtins(plan)}, space=SPACE)
        return self.execute(plan, name)

    def plan(self, task: str) -> Plan:
        """Have the model make a plan; the grammar leaves it none that cannot be carried out."""
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

    def execute(self, plan: Plan, name: str) -> dict[str, End]:
        """Carry a plan out, whoever made it. `name` tells it from others in the agent's memory.

        Raises:
            BadInput: it cannot be carried out.
        """
        check(plan, self.tools, self.agents)
        steps = {step.id: step for step in plan.steps}
        before = {
            key.removeprefix(f"{name}/"): msgspec.convert(end, End)
            for key, end in self.aios.mem_items(f"{name}/", space=SPACE)
        }
        ends: dict[str, End] = {}
        running: dict[str, Call] = {}
        order = plan.order()
        while order.is_active():
            for id in order.get_ready():
                begun = self.begin(steps[id], ends, before.get(id), f"{name}/{id}")
                if isinstance(begun, End):
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

    def begin(self, step: Step, ends: dict[str, End], before: End | None, key: str) -> Call | End:
        """Start a step, unless it needs no start any more, or cannot."""
        state = before.state if before is not None else "failed"
        if before is not None and state in ("done", "unknown"):
            return before
        if state == "started":
            return self.keep(key, End(state="unknown", error="it was interrupted"))
        if any(ends[other].state != "done" for other in step.needs):
            return End(state="skipped")
        try:
            args = self.resolved(step.args, ends)
            if step.agent:
                return self.aios.start("proc.wait", pid=self.aios.spawn(step.agent, args))
            if self.tools[step.tool].effect:
                self.keep(key, End(state="started"))
            return self.aios.call_tool(step.tool, args)
        except FAILURES as error:
            return self.keep(key, End(state="failed", error=str(error)))

    def keep(self, key: str, end: End) -> End:
        self.aios.mem_put({key: msgspec.to_builtins(end)}, space=SPACE)
        return end

    def resolved(self, value: Any, ends: dict[str, End]) -> Any:
        """Arguments, with results in the place of what refers to them.

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


def outcome(call: Call) -> End:
    """What a call came to that has ended."""
    try:
        if isinstance(call, ToolCall):
            result = call.result()
            return End(state="done", value=result.value, stored=result.stored, owner=result.owner)
        child = msgspec.convert(call.wait(), Exited)
    except ToolUnknown as error:
        return End(state="unknown", error=str(error))
    except FAILURES as error:
        return End(state="failed", error=str(error))
    if child.code:
        why = f"{child.name} ended with {child.code} ({child.reason}): {child.result}"
        return End(state="failed", error=why)
    return End(state="done", value=child.result)
