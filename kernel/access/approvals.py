"""Approvals: questions that a person answers before a call goes on. No answer in time means deny.

A tree of agents has MAX_UNANSWERED questions at most. Questions of cancelled calls count until
their time is over: a person reads each, and cancelling is quicker than reading.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
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
from ..lib.callbacks import After
from ..lib.coroutine import Wait
from ..lib.trees import Trees, check_tree, root
from ..manifests import in_words
from ..rules import Permit
from .gate import Gate

MAX_UNANSWERED = 64  # of a tree of agents

_encode = msgspec.msgpack.Encoder().encode
_question = msgspec.msgpack.Decoder(acc.Question).decode
_patterns = msgspec.msgpack.Decoder(list[str]).decode


@dataclass
class PendingApproval:
    """A call that waits for an answer. An approval is answered with the objects that were shown.
    The question is held as bytes: as objects it may take seventy times the room."""

    call: Call
    told: msgspec.Raw  # the question
    on: bytes  # patterns for the objects
    answer: Wait[Sequence[str]]
    timer: Any

    @property
    def question(self) -> acc.Question:
        return _question(self.told)


class Approvals:
    """The pending approvals. `timeout` is in seconds."""

    def __init__(self, gate: Gate, timeout: float, after: After) -> None:
        self.gate, self.timeout, self.after = gate, timeout, after
        self.last = 0
        self.pending: dict[int, PendingApproval] = {}
        self.unanswered = Trees()
        self.followers: Followers[None] = Followers()

    def ask(
        self, call: Call, args: Message, permit: Permit
    ) -> tuple[int, Awaitable[Sequence[str]]]:
        """Ask about a call, showing all its arguments. Return the bytes held for the question, and
        the answer: the objects that were shown, or Denied raised.

        Raises:
            LimitReached: the caller's tree of agents has too many questions unanswered.
        """
        who = call.process.principal
        unanswered = self.unanswered.total(root(who))
        check_tree(who, unanswered, MAX_UNANSWERED, "unanswered questions", "ask again later")
        self.unanswered.add(who, 1)
        self.last += 1
        question = acc.Question(
            id=self.last, pid=call.process.pid, principal=who,
            call=call.syscall.name, right=permit.asked[0].right, objects=list(permit.objects),
            args=given(args), rule=permit.rule, tainted=sorted(call.process.labels),
            expires=time.time() + self.timeout,
        )  # fmt: skip
        on = _encode(list(dict.fromkeys(request.pattern for request in permit.asked)))
        timer = self.after(self.timeout, partial(self._expire, self.last, who))
        told = msgspec.Raw(_encode(question))
        approval = self.pending[self.last] = PendingApproval(call, told, on, Wait(), timer)
        for follower, _ in self.followers:
            follower.piece(told)
        return len(told) + len(on), self._answer(self.last, approval)

    async def _answer(self, number: int, approval: PendingApproval) -> Sequence[str]:
        try:
            return await approval.answer
        finally:
            del self.pending[number]

    def _expire(self, number: int, who: str) -> None:
        self.unanswered.add(who, -1)
        approval = self.pending.get(number)
        if approval is not None:
            late = f"nobody has answered within {self.timeout:g} s: {approval.question.rule}"
            approval.answer.fail(Denied(late, "`aios policy ask`"))

    async def follow(self, call: Call, args: acc.Questions) -> Any:
        """Send the pending questions, then each new one, until the caller cancels."""
        with self.followers.following(call, None):
            for approval in self.pending.values():
                call.piece(approval.told)
            await Wait[Any]()

    def answer(self, call: Call, args: acc.Answer) -> Done:
        """Answer a question. Raises NotFound where no call waits for the answer; BadInput where no
        grant can cover the objects that were shown."""
        approval = self.pending.get(args.id)
        if approval is None:
            raise NotFound(f"no question {args.id} waits", "it was answered, or its time is over")
        question = approval.question
        if args.answer == "deny":
            self._count_as_answered(approval)
            approval.answer.fail(Denied(f"a person denies {question.call}: {question.rule}"))
            return Done()
        if args.answer != "once":
            to = question.principal if args.answer == "always" else f"#{question.pid}"
            on = _patterns(approval.on)
            if len(on) > MAX_PATTERNS or max(map(len, on)) > MAX_PATTERN_CHARS:
                raise BadInput(
                    f"it is about more than the {MAX_PATTERNS} objects, or names longer than the "
                    f"{MAX_PATTERN_CHARS} letters, that a grant can have",
                    "answer `once`, or set a rule: `aios group`",
                )
            rule = Rule(question.right, on)
            self.gate.grants.give(call.process, to, rule)
            words = f"[{in_words(rule)}] [to {to}]"
            call.trap.audit.changed(call.process, call.id, call.syscall, call.intent, words)
        self._count_as_answered(approval)
        approval.answer.done(question.objects)
        return Done()

    def _count_as_answered(self, approval: PendingApproval) -> None:
        approval.timer.cancel()
        self.unanswered.add(approval.call.process.principal, -1)

    def check(self) -> list[str]:
        """Return broken invariants, in words."""
        kept = [number for number, each in self.pending.items() if each.call.ended]
        return [
            *self.followers.check(),
            *(f"question {number} is kept, its call has ended" for number in kept),
        ]


def given(args: Message) -> dict[str, Any]:
    """Return a call's arguments by name, without those that have their default."""
    return {
        field.name: msgspec.to_builtins(value, builtin_types=(bytes,))
        for field in msgspec.structs.fields(args)
        if (value := getattr(args, field.name)) not in (field.default, None)
    }
