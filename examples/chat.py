"""A conversation in one context: the turns of its task, or whoever sends it messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from aios.agents import Agent
from aios.syscalls.errors import ContextFull, LimitReached, NotFound

SYSTEM = "You are a friendly assistant. Answer in one or two short sentences."


class Chat(Agent):
    """Its task is a line, or {"turns": [line, ...], "max_tokens": n}; its result the transcript.

    Without a task every message that comes is a line, and the answer goes back to its sender,
    until an empty message ends the talk.
    """

    name = "chat"

    def run(self, task: Any) -> dict[str, Any]:
        self.tokens = task.get("max_tokens", 64) if isinstance(task, dict) else 64
        self.talk = self.aios.open(SYSTEM)
        transcript = []
        for sender, line in self.lines(task):
            answer = self.answer(line)
            transcript.append({"user": line, "assistant": answer})
            if sender is not None:
                with contextlib.suppress(NotFound, LimitReached):  # gone, or it reads nothing
                    self.aios.send(sender, answer)
        return {"transcript": transcript}

    def lines(self, task: Any) -> Iterator[tuple[int | None, str]]:
        if task is None:
            print(f"talk to it with `aios chat {self.aios.pid}`; an empty message ends it")
            while (mail := self.aios.recv()).body:
                yield mail.sender, mail.body
        else:
            for line in [task] if isinstance(task, str) else task["turns"]:
                yield None, line

    def answer(self, line: str) -> str:
        print(f"> {line}")
        try:
            return self.say(line)
        except ContextFull:
            print("(the context is full: what was said so far is forgotten)")
            self.talk.close()
            self.talk = self.aios.open(SYSTEM)
            return self.say(line)

    def say(self, line: str) -> str:
        answer = self.talk.generate(line, max_tokens=self.tokens)
        for piece in answer:
            print(piece, end="", flush=True)
        print()
        return answer.text.strip()
