"""What a person is asked before a call goes on. No answer in time means deny."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aios.syscalls import acc
from aios.syscalls.errors import Denied, NotFound
from aios.syscalls.messages import Done
from aios.syscalls.rules import Rule

from .access import Gate
from .patterns import exactly
from .policy import Request
from .trap import Call


@dataclass
class Held:
    """A call that waits for the answer; `go_on` runs it."""

    question: acc.Question
    call: Call
    go_on: Callable[[], None]


class Questions:
    """`after(seconds, run)` starts a timer that can be cancelled."""

    def __init__(
        self, gate: Gate, timeout: float, after: Callable[[float, Callable[[], None]], Any]
    ) -> None:
        self.gate, self.timeout, self.after = gate, timeout, after
        self.last = 0
        self.held: dict[int, Held] = {}
        self.followers: list[Call] = []

    def hold(self, call: Call, asked: Request, rule: str, go_on: Callable[[], None]) -> None:
        """Ask, and end the call or let it go on by the answer."""
        self.last += 1
        question = acc.Question(
            id=self.last, pid=call.process.pid, principal=call.process.principal,
            call=call.row.name, right=asked.right, object=asked.object, args=dict(asked.args),
            rule=rule, tainted=sorted(call.process.labels), expires=time.time() + self.timeout,
        )  # fmt: skip
        self.held[question.id] = Held(question, call, go_on)
        late = Denied(f"nobody has answered within {self.timeout:g} s: {rule}", "`aios policy ask`")
        timer = self.after(self.timeout, lambda: call.fail(late))

        def stop() -> None:
            del self.held[question.id]
            timer.cancel()

        call.on_end = stop
        for follower in self.followers:
            follower.piece(question)

    def follow(self, call: Call) -> None:
        self.followers.append(call)
        call.on_end = lambda: self.followers.remove(call)
        for held in self.held.values():
            call.piece(held.question)

    def answer(self, call: Call, args: acc.Answer) -> Done:
        """Raises NotFound where nobody waits for that any more."""
        held = self.held.get(args.id)
        if held is None:
            raise NotFound(f"no question {args.id} waits", "it was answered, or its time is over")
        question, asker = held.question, held.call
        if args.answer == "deny":
            asker.fail(Denied(f"a person denies {question.call}: {question.rule}"))
            return Done()
        if args.answer != "once":
            to = question.principal if args.answer == "always" else f"#{question.pid}"
            rule = Rule(question.right, [exactly(question.object)])
            self.gate.accounts.give(call.process, to, rule)
        assert asker.on_end is not None
        asker.on_end()
        asker.on_end = None
        held.go_on()
        return Done()

    def check(self) -> list[str]:
        return [f"question {n} is kept, its call has ended" for n, h in self.held.items()
                if h.call.ended]  # fmt: skip
