"""Text and messages become tokens, and tokens text, at the core's vocabulary."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aios.syscalls.errors import AiosError, BadInput, CoreFailed, from_wire
from aios.syscalls.llm import Decoding

from ..core.protocol import Compile, DetokenizeRequest, Question, Tokenized, TokenizeRequest
from ..lib.coroutine import Wait
from ..lib.fair_queue import FairQueue
from ..lib.trees import root
from ..process import Process
from .contexts import ContextManager
from .past import Past, Turn

GRAMMARS, TEXTS = 1, 8  # questions of a kind that are with the core at once
DEATHS = 3  # of the core, after which a question or a generation is given up


@dataclass
class Asked:
    question: Question
    queue: FairQueue
    end: Wait[Tokenized] = field(default_factory=Wait)
    deaths: int = 0


class Entering(NamedTuple):
    """Input that is to enter a context: one of turns, text, tokens."""

    turns: list[Turn]
    text: str | None
    tokens: list[int] | None
    reply: bool  # the assistant's answer is opened


class Prompts:
    """Questions to the core's vocabulary; those on their way when a core dies are asked again.

    The core answers one after the other. A long text takes it tens of milliseconds, a grammar half
    a second: of those that wait each tree of agents has one in turn.
    """

    ask: Callable[[Question], None]  # the core; set by the boot

    def __init__(self, contexts: ContextManager) -> None:
        self.contexts = contexts
        self.questions: dict[int, Asked] = {}
        self.grammars, self.texts = FairQueue(GRAMMARS), FairQueue(TEXTS)
        self.last = time.monotonic_ns()  # a core may still answer what another kernel asked
        self.core_error: AiosError | None = None  # there is no core now: nobody waits for it

    async def question(self, process: Process, kind: type[Question], *fields: Any) -> Tokenized:
        """Ask for a process, in turn with the other trees of agents. `fields` are those behind the
        number. Raises what is the answer's error."""
        self.check_core()
        self.last += 1
        req, question = self.last, kind(self.last, *fields)
        queue = self.grammars if isinstance(question, Compile) else self.texts
        asked = self.questions[req] = Asked(question, queue)
        try:
            queue.add(root(process.principal), req)
            self._ask_next(queue)
            encoded = await asked.end
        finally:
            if not asked.end.is_over:
                self._drop(req)
        if encoded.error is not None:
            raise from_wire(encoded.error)
        return encoded

    def _drop(self, req: int) -> None:
        """Its call has ended. The core answers all the same what it has been asked."""
        queue = self.questions[req].queue
        if req not in queue.begun:
            del self.questions[req]
            queue.drop(req)

    def _ask_next(self, queue: FairQueue) -> None:
        while (req := queue.begin()) is not None:
            self.ask(self.questions[req].question)

    def answered(self, encoded: Tokenized) -> None:
        if encoded.req in self.questions:  # or it was asked twice, around the death of a core
            asked = self.questions.pop(encoded.req)
            asked.queue.end(encoded.req)
            asked.end.done(encoded)
            self._ask_next(asked.queue)

    def asked(self) -> list[Question]:
        """List the questions that the core has."""
        begun = sorted(self.grammars.begun | self.texts.begun)
        return [self.questions[req].question for req in begun]

    def core_gone(self) -> None:
        """A question may be what the core dies of."""
        for question in self.asked():
            asked, req = self.questions[question.req], question.req
            asked.deaths += 1
            if asked.deaths >= DEATHS:
                error = CoreFailed(f"the LLM core died {asked.deaths} times under this call")
                self.answered(Tokenized(req, error=error.to_wire()))

    def give_up(self, error: AiosError) -> None:
        self.core_error = error
        for req in list(self.questions):
            self.answered(Tokenized(req, error=error.to_wire()))

    async def compile(self, process: Process, args: Decoding) -> None:
        """Return once the answer that `args` ask for is known to be possible."""
        if args.schema is not None and args.grammar is not None:
            raise BadInput("schema and grammar exclude each other", "send one of them")
        if args.schema is not None or args.grammar is not None:
            await self.question(process, Compile, args.schema, args.grammar)

    async def encode(self, process: Process, context: Past, new: Entering) -> list[int]:
        """Return the tokens that `new` is, behind what is in `context`."""
        if new.tokens is not None and self.contexts.window:
            self.check_core()
            return new.tokens
        turns = [(turn.role, turn.content) for turn in context.turns]
        messages = [(turn.role, turn.note + turn.text) for turn in new.turns]
        given = enumerate([*context.turns, *new.turns])
        tokens = {at: turn.tokens for at, turn in given if turn.tokens}
        start = context.used == 0
        text = new.text if new.tokens is None else ""  # just to wait for the first core
        encoded = await self.question(
            process, TokenizeRequest, text, messages, turns, new.reply, start, tokens
        )
        return new.tokens or encoded.tokens

    async def detokenize(self, process: Process, tokens: list[int]) -> str:
        return (await self.question(process, DetokenizeRequest, tokens)).text

    def check_core(self) -> None:
        if self.core_error is not None:
            raise self.core_error
