"""A conversation in one context: the turns of its task, or whoever sends it messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from aios.agents import Agent
from aios.examples._texts import as_task
from aios.syscalls.errors import ContextFull, LimitReached, NotFound

SYSTEM = "You are a friendly assistant. Answer in one or two short sentences."
TOO_LONG = "(that is too long for me: say less at once)"


class Task(msgspec.Struct, forbid_unknown_fields=True):
    turns: list[str] | None = None
    max_tokens: int = 64


class Chat(Agent):
    """Its task is a line, or {"turns": [line, ...], "max_tokens": n}; its result the transcript.

    Without a task every message that comes is a line, and the answer goes back to its sender,
    until an empty message ends the talk.
    """

    name = "chat"

    def run(self, task: Any) -> dict[str, Any]:
        job = as_task(self, {"turns": [task]} if isinstance(task, str) else task, Task)
        self.tokens = job.max_tokens
        self.talk = self.aios.open(SYSTEM)
        transcript = []
        for sender, line in self.lines(job.turns):
            answer = self.answer(line)
            transcript.append({"user": line, "assistant": answer})
            if sender is not None:
                with contextlib.suppress(NotFound, LimitReached):  # gone, or it reads nothing
                    self.aios.send(sender, answer)
        return {"transcript": transcript}

    def lines(self, turns: list[str] | None) -> Iterator[tuple[int | None, str]]:
        if turns is None:
            print(f"talk to it with `aios chat {self.aios.pid}`; an empty message ends it")
            while (mail := self.aios.recv()).body:
                yield mail.sender, mail.body if isinstance(mail.body, str) else repr(mail.body)
        else:
            for line in turns:
                yield None, line

    def answer(self, line: str) -> str:
        print(f"> {line}")
        with contextlib.suppress(ContextFull):
            return self.say(line)
        print("(the context is full: what was said so far is forgotten)")
        self.talk.close()
        self.talk = self.aios.open(SYSTEM)
        try:
            return self.say(line)
        except ContextFull:
            print(TOO_LONG)
            return TOO_LONG

    def say(self, line: str) -> str:
        answer = self.talk.generate(line, max_tokens=self.tokens)
        for piece in answer:
            print(piece, end="", flush=True)
        print()
        return answer.text.strip()
