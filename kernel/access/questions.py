"""What a person is asked before a call goes on. No answer in time means deny.

A tree of agents has OF_TREE questions unanswered at most, those that it has cancelled among them
until their time is over: whoever follows them reads each, and cancelling is quicker than reading.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from aios.syscalls import acc
from aios.syscalls.base import Done, Message
from aios.syscalls.errors import BadInput, Denied, NotFound
from aios.syscalls.rules import MAX_PATTERN_CHARS, MAX_PATTERNS, Rule

from ..entry.call import Call
from ..entry.followers import Followers
from ..lib.coroutine import Wait
from ..lib.trees import Trees, check_tree, root
from ..rules import Passed, in_words
from .gate import Gate

OF_TREE = 64

_encode = msgspec.msgpack.Encoder().encode
_question = msgspec.msgpack.Decoder(acc.Question).decode
_patterns = msgspec.msgpack.Decoder(list[str]).decode


@dataclass
class Held:
    """A call that waits for the answer, which are the objects that were shown. The question waits
    as bytes: as objects it may take seventy times the room."""

    call: Call
    told: msgspec.Raw  # the question
    on: bytes  # patterns for what is asked
    answer: Wait[Sequence[str]]
    timer: Any

    @property
    def question(self) -> acc.Question:
        return _question(self.told)


class Questions:
    """`after(seconds, run)` starts a timer that can be cancelled."""

    def __init__(
        self, gate: Gate, timeout: float, after: Callable[[float, Callable[[], None]], Any]
    ) -> None:
        self.gate, self.timeout, self.after = gate, timeout, after
        self.last = 0
        self.held: dict[int, Held] = {}
        self.unanswered = Trees()
        self.followers: Followers[None] = Followers()

    def ask(
        self, call: Call, args: Message, passed: Passed
    ) -> tuple[int, Awaitable[Sequence[str]]]:
        """Ask, with all that the call was given. Return the bytes that are kept for it, and the
        answer: the objects that were shown, or Denied raised.

        Raises:
            LimitReached: its tree of agents has too many questions unanswered.
        """
        who = call.process.principal
        unanswered = self.unanswered.total(root(who))
        check_tree(who, unanswered, OF_TREE, "unanswered questions", "ask again later")
        self.unanswered.add(who, 1)
        self.last += 1
        question = acc.Question(
            id=self.last, pid=call.process.pid, principal=who,
            call=call.row.name, right=passed.asked[0].right, objects=list(passed.objects),
            args=given(args), rule=passed.rule, tainted=sorted(call.process.labels),
            expires=time.time() + self.timeout,
        )  # fmt: skip
        on = _encode(list(dict.fromkeys(request.pattern for request in passed.asked)))
        timer = self.after(self.timeout, partial(self._late, self.last, who))
        held = self.held[self.last] = Held(call, msgspec.Raw(_encode(question)), on, Wait(), timer)
        for follower, _ in self.followers:
            follower.piece(held.told)
        return len(held.told) + len(on), self._answer(self.last, held)

    async def _answer(self, number: int, held: Held) -> Sequence[str]:
        try:
            return await held.answer
        finally:
            del self.held[number]

    def _late(self, number: int, who: str) -> None:
        self.unanswered.add(who, -1)
        held = self.held.get(number)
        if held is not None:
            late = f"nobody has answered within {self.timeout:g} s: {held.question.rule}"
            held.answer.fail(Denied(late, "`aios policy ask`"))

    async def follow(self, call: Call) -> Any:
        with self.followers.following(call, None):
            for held in self.held.values():
                call.piece(held.told)
            await Wait[Any]()

    def answer(self, call: Call, args: acc.Answer) -> Done:
        """Raises NotFound where nobody waits for that any more; BadInput where no grant can say
        what was shown."""
        held = self.held.get(args.id)
        if held is None:
            raise NotFound(f"no question {args.id} waits", "it was answered, or its time is over")
        question = held.question
        if args.answer == "deny":
            self._count_as_answered(held)
            held.answer.fail(Denied(f"a person denies {question.call}: {question.rule}"))
            return Done()
        if args.answer != "once":
            to = question.principal if args.answer == "always" else f"#{question.pid}"
            on = _patterns(held.on)
            if len(on) > MAX_PATTERNS or max(map(len, on)) > MAX_PATTERN_CHARS:
                raise BadInput(
                    f"it is about more than the {MAX_PATTERNS} objects, or names longer than the "
                    f"{MAX_PATTERN_CHARS} letters, that a grant can have",
                    "answer `once`, or set a rule: `aios group`",
                )
            rule = Rule(question.right, on)
            self.gate.accounts.give(call.process, to, rule)
            words = f"[{in_words(rule)}] [to {to}]"
            call.trap.audit.changed(call.process, call.id, call.row, call.intent, words)
        self._count_as_answered(held)
        held.answer.done(question.objects)
        return Done()

    def _count_as_answered(self, held: Held) -> None:
        held.timer.cancel()
        self.unanswered.add(held.call.process.principal, -1)

    def check(self) -> list[str]:
        kept = [number for number, held in self.held.items() if held.call.ended]
        return [
            *self.followers.check(),
            *(f"question {number} is kept, its call has ended" for number in kept),
        ]


def given(args: Message) -> dict[str, Any]:
    """What a call was given, by name: nothing that it does stands anywhere else."""
    return {
        field.name: msgspec.to_builtins(value, builtin_types=(bytes,))
        for field in msgspec.structs.fields(args)
        if (value := getattr(args, field.name)) not in (field.default, None)
    }
