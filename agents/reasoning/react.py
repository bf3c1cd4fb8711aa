"""A ReAct agent: a model that thinks, calls tools, reads what they return, and answers.

from aios.agents.reasoning import ReAct

outcome = ReAct(aios).run("How many seconds are there in three days?")
print(outcome.answer)

The model reads errors of calls, and may correct them. Once a limit is reached the model may only
answer, so there always is an answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from aios.agents.sdk.aios import Aios
from aios.agents.sdk.contexts import Context
from aios.agents.sdk.tools import ToolCall
from aios.syscalls.errors import AiosError, ContextFull, LimitReached, NotFound, NotJson
from aios.syscalls.llm import Result
from aios.syscalls.tool import ToolResult

from .tool_dialogue import (
    MENDABLE,
    Choice,
    Example,
    ModelAnswer,
    ToolCallRequest,
    ToolDialogue,
    bound,
    chosen,
)

CHARS_PER_TOKEN = 2  # hardly any text has fewer
MIN_SHOWN_CHARS = 80  # of a result, however full the window is
REPEATED = "You have made these calls before."

Ended = Literal["answer", "steps", "calls", "tokens", "seconds", "window", "repeated"]


@dataclass(frozen=True)
class LoopLimits:
    steps: int = 8  # answers that call tools
    calls: int = 16
    parallel: int = 4  # calls in one step
    tokens: int = 2048  # generated, but for the last answer
    answer: int = 256  # tokens of one answer, calls and all
    seconds: float = 300.0  # until it may only answer; no call lasts longer
    shown: int = 1200  # characters of a result that the model reads


@dataclass(frozen=True)
class Observation:
    """A call, its result, and the part of the result that the model read."""

    request: ToolCallRequest
    end: ToolResult | AiosError
    shown: str


@dataclass(frozen=True)
class LoopStep:
    thought: str
    calls: list[Observation]
    problem: str = ""  # why there are none: the answer was cut, or all were made before


@dataclass
class Outcome:
    answer: str = ""
    ended: Ended = "answer"  # or the limit by which the model had to answer
    steps: list[LoopStep] = field(default_factory=list)
    tokens: int = 0  # generated

    @property
    def calls(self) -> list[Observation]:
        return [call for step in self.steps for call in step.calls]


class ReAct:
    """A loop with the tools that the agent may call, or only those named. `system` is the system
    message. `fixed` has, by tool, the values of arguments that the model may not choose; `examples`
    are tasks, each with a tool and arguments to begin with. With `must_call` the model calls a tool
    before it answers. `options` are those of generate: temperature, seed, ...

    Raises:
        BadGrammar: no grammar can keep a tool's schema.
        NotFound: there is no tool that `only` names, or the model has none that `fixed` or an
            example does. ToolFailed: its toolbox did not start.
    """

    def __init__(
        self, aios: Aios, *, system: str = "", only: Sequence[str] | None = None,
        fixed: Mapping[str, Mapping[str, Any]] | None = None, examples: Sequence[Example] = (),
        must_call: bool = False, limits: LoopLimits | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.aios = aios
        self.system, self.must_call = system, must_call
        self.limits, self.options = limits or LoopLimits(), options
        fixed = fixed or {}
        specs = [bound(spec, fixed.get(spec.name, {})) for spec in chosen(aios, only)]
        names = [spec.name for spec in specs]
        for name in (*fixed, *(tool for _, tool, _ in examples)):
            if name not in names:
                raise NotFound(f"the model has no tool {name!r}", f"it has: {', '.join(names)}")
        self.talk = ToolDialogue(aios, specs, parallel=self.limits.parallel, examples=examples)

    def run(self, task: str) -> Outcome:
        """Do a task. Raises errors that the model cannot mend: ContextFull if the task is too long,
        KernelGone, CoreFailed, ..."""
        done, deadline = Outcome(), time.monotonic() + self.limits.seconds
        with self.aios.open() as context:
            at = context.append(self.talk.opening(task, self.system))
            room = at.window - at.used
            while True:
                done.ended = self.reached(done, room, deadline)
                if done.steps:
                    self.tell(context, done, task)
                answer = self.answer(context, done)
                done.tokens += answer.usage.completion
                room = at.window - answer.usage.context
                try:
                    said = self.talk.parse(answer.text)
                except NotJson as error:
                    done.steps.append(LoopStep(answer.text, [], str(error)))
                    continue
                if not said.calls:
                    done.answer = said.text
                    return done
                step = self.step(said, done, room, deadline)
                room -= sum(len(call.shown) for call in step.calls) // CHARS_PER_TOKEN
                done.steps.append(step)

    def reached(self, done: Outcome, room: int, deadline: float) -> Ended:
        """Return the limit that is reached, or "answer" if none is."""
        limits = self.limits
        if time.monotonic() >= deadline:
            return "seconds"
        if room < 2 * limits.answer:  # for a call and an answer
            return "window"
        if done.tokens + limits.answer > limits.tokens:
            return "tokens"
        if len(done.calls) >= limits.calls:
            return "calls"
        if done.steps and done.steps[-1].problem == REPEATED:
            return "repeated"
        return "steps" if len(done.steps) >= limits.steps else "answer"

    def tell(self, context: Context, done: Outcome, task: str) -> None:
        """Append the results of the last step and, once a limit is reached, ask for the answer."""
        step, last = done.steps[-1], "" if done.ended == "answer" else task
        requests, shown = [c.request for c in step.calls], [c.shown for c in step.calls]
        try:
            context.append(self.talk.results(requests, shown, step.problem, last))
        except ContextFull:  # a token had fewer letters
            shown = [text[:MIN_SHOWN_CHARS] for text in shown]
            context.append(self.talk.results(requests, shown, step.problem, last))

    def answer(self, context: Context, done: Outcome) -> Result:
        free: Choice = "call" if self.must_call and not done.steps else "auto"
        grammar = self.talk.grammar(free if done.ended == "answer" else "answer")
        options = {"max_tokens": self.limits.answer, **self.options}
        return context.generate(grammar=grammar, **options).result()

    # --- calls ----------------------------------------------------------------------------------

    def step(self, said: ModelAnswer, done: Outcome, room: int, deadline: float) -> LoopStep:
        """Make the calls of an answer, each once, unless all were made before."""
        made = [call.request.what for call in done.calls]
        requests = {request.what: request for request in reversed(said.calls)}
        if requests.keys() <= set(made):
            return LoopStep(said.text, [], REPEATED)
        asked = list(reversed(requests.values()))
        ends = self.call(asked, self.limits.calls - len(made), deadline)
        letters = CHARS_PER_TOKEN * (room - self.limits.answer) // len(ends)
        letters = max(MIN_SHOWN_CHARS, min(self.limits.shown, letters))
        calls = [
            Observation(request, end, self.shown(end, letters))
            for request, end in zip(asked, ends, strict=True)
        ]
        return LoopStep(said.text, calls)

    def call(
        self, requests: list[ToolCallRequest], left: int, deadline: float
    ) -> list[ToolResult | AiosError]:
        """Make calls in parallel and return their results; those beyond `left` are refused."""
        running = [self.start(request, deadline) for request in requests[:left]]
        refused = LimitReached(f"{self.limits.calls} calls were made: no more")
        try:
            return [self.end(call) for call in running] + [refused] * len(requests[left:])
        finally:
            for call in running:
                if not isinstance(call, AiosError) and not call.ended:
                    call.cancel()

    def start(self, request: ToolCallRequest, deadline: float) -> ToolCall | AiosError:
        try:
            left = max(deadline - time.monotonic(), 0.1)
            return self.aios.call_tool(request.name, request.args, timeout=left)
        except MENDABLE as error:
            return error

    def end(self, call: ToolCall | AiosError) -> ToolResult | AiosError:
        try:
            return call if isinstance(call, AiosError) else call.result()
        except MENDABLE as error:
            return error

    def shown(self, end: ToolResult | AiosError, letters: int) -> str:
        """Return the text for the model: the beginning of a result, and the path of the whole."""
        if isinstance(end, AiosError):
            return f"error: {end}"[:letters]
        text, rest = as_text(end.value), ""
        if end.stored or len(text) > letters:
            rest = f"\n[this is how it begins; {self.kept(text, end.stored)}]"
        return text[:letters] + rest

    def kept(self, text: str, path: str) -> str:
        """Store a result, unless it is stored, and say where."""
        try:
            if not path:
                path = f"tools/results/{blake2b(text.encode(), digest_size=8).hexdigest()}"
                self.aios.sto_put(path, text)
        except MENDABLE as error:
            return f"the rest cannot be stored: {error}"
        return f"all of it is stored as {path}"


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
