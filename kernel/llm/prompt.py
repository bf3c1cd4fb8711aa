"""Ask the core to make tokens of text and messages, text of tokens, and to compile grammars."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aios.syscalls.errors import AiosError, BadInput, CoreFailed, from_wire
from aios.syscalls.llm import Decoding, Detokenize, Text, Tokenize, Tokens

from ..core.protocol import Compile, DetokenizeRequest, Question, Tokenized, TokenizeRequest
from ..entry.call import Call
from ..lib.coroutine import Wait
from ..lib.fair_queue import FairQueue
from ..lib.trees import root
from ..process import Process
from .context_state import ContextState, Turn
from .contexts import ContextManager

MAX_GRAMMARS, MAX_TEXTS = 1, 8  # questions of a kind that the core has at once
MAX_DEATHS = 3  # of cores under a question or a generation, until it is given up


@dataclass
class PendingQuestion:
    """A question whose answer a call waits for."""

    question: Question
    queue: FairQueue
    end: Wait[Tokenized] = field(default_factory=Wait)
    deaths: int = 0


class PromptInput(NamedTuple):
    """Input that is to enter a context: turns, or text, or tokens."""

    turns: list[Turn]
    text: str | None
    tokens: list[int] | None
    reply: bool  # the assistant's answer is to follow


class Prompts:
    """Questions to the core; those on their way when a core dies are asked again.

    The core answers one after the other. A long text takes tens of milliseconds, a grammar half a
    second, so trees of agents take turns. `ask` asks it, once it is ready.
    """

    def __init__(self, contexts: ContextManager, ask: Callable[[Question], None]) -> None:
        self.contexts, self.ask = contexts, ask
        self.questions: dict[int, PendingQuestion] = {}
        self.grammars, self.texts = FairQueue(MAX_GRAMMARS), FairQueue(MAX_TEXTS)
        self.last = time.monotonic_ns()  # a core may still answer what another kernel asked
        self.core_error: AiosError | None = None  # why there is no core; then nobody waits for one

    async def question(self, process: Process, kind: type[Question], *fields: Any) -> Tokenized:
        """Ask for a process, in turn with the other trees of agents. `fields` are those behind the
        question's number. Raises the answer's error."""
        self.check_core()
        self.last += 1
        req, question = self.last, kind(self.last, *fields)
        queue = self.grammars if isinstance(question, Compile) else self.texts
        asked = self.questions[req] = PendingQuestion(question, queue)
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
        """Drop a question whose call has ended, unless the core has it."""
        queue = self.questions[req].queue
        if req not in queue.begun:
            del self.questions[req]
            queue.drop(req)

    def _ask_next(self, queue: FairQueue) -> None:
        while (req := queue.begin()) is not None:
            self.ask(self.questions[req].question)

    def answered(self, encoded: Tokenized) -> None:
        """End a question. After the death of a core it may be answered twice."""
        if encoded.req in self.questions:
            asked = self.questions.pop(encoded.req)
            asked.queue.end(encoded.req)
            asked.end.done(encoded)
            self._ask_next(asked.queue)

    def asked(self) -> list[Question]:
        """List the questions that the core has."""
        begun = sorted(self.grammars.begun | self.texts.begun)
        return [self.questions[req].question for req in begun]

    def core_gone(self) -> None:
        """Count a death of the core for the questions it had: one of them may be the cause."""
        for question in self.asked():
            asked, req = self.questions[question.req], question.req
            asked.deaths += 1
            if asked.deaths >= MAX_DEATHS:
                error = CoreFailed(f"the LLM core died {asked.deaths} times under this call")
                self.answered(Tokenized(req, error=error.to_wire()))

    def give_up(self, error: AiosError) -> None:
        """End all questions with an error, until there is a core again."""
        self.core_error = error
        for req in list(self.questions):
            self.answered(Tokenized(req, error=error.to_wire()))

    async def compile(self, process: Process, args: Decoding) -> None:
        """Have the core compile the grammar that an answer must fit, if any. Raises BadInput."""
        if args.schema is not None and args.grammar is not None:
            raise BadInput("schema and grammar exclude each other", "send one of them")
        if args.schema is not None or args.grammar is not None:
            await self.question(process, Compile, args.schema, args.grammar)

    async def encode(self, process: Process, context: ContextState, new: PromptInput) -> list[int]:
        """Return the tokens of an input behind what is in `context`."""
        if new.tokens is not None and self.contexts.window:
            self.check_core()
            return new.tokens
        turns = [(turn.role, turn.content) for turn in context.turns]
        messages = [(turn.role, turn.note + turn.text) for turn in new.turns]
        given = enumerate([*context.turns, *new.turns])
        tokens = {at: turn.tokens for at, turn in given if turn.tokens}
        start = context.used == 0
        text = new.text if new.tokens is None else ""  # asked just to wait for the first core
        encoded = await self.question(
            process, TokenizeRequest, text, messages, turns, new.reply, start, tokens
        )
        return new.tokens or encoded.tokens

    async def tokenize(self, call: Call, args: Tokenize) -> Tokens:
        """Return the tokens of text or messages. Raises BadInput for both, or for neither."""
        if (args.text is None) == (args.messages is None):
            raise BadInput("give text or messages, one of them")
        messages = [(message.role, message.content) for message in args.messages or []]
        answer = await self.question(call.process, TokenizeRequest, args.text, messages)
        return Tokens(tokens=answer.tokens)

    async def detokenize(self, call: Call, args: Detokenize) -> Text:
        answer = await self.question(call.process, DetokenizeRequest, args.tokens)
        return Text(text=answer.text)

    def check_core(self) -> None:
        if self.core_error is not None:
            raise self.core_error
