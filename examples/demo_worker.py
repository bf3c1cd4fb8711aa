"""One job of `aios demo`: answer a prompt, printing the words as they come."""

from __future__ import annotations

from typing import Any

import msgspec

from aios.agents import Agent


class DemoWorker(Agent):
    """Its task has a prompt and options of llm.generate; its result is what that call ends with."""

    name = "demo-worker"

    def run(self, task: dict[str, Any]) -> Any:
        answer = self.aios.generate(task["prompt"], digest=True, **task["options"])
        for piece in answer:
            print(piece, end="", flush=True)
        return msgspec.to_builtins(answer.result())
