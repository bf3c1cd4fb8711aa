"""One job of `aios demo`: answer a prompt, printing the words as they come."""

from __future__ import annotations

from typing import Any

import msgspec

from aios.agents import Agent
from aios.examples._texts import as_task


class Job(msgspec.Struct):
    prompt: str
    options: dict[str, Any] = {}


class DemoWorker(Agent):
    """Its task is {"prompt": ..., "options": {...}}, options of llm.generate; its result is what
    that call ends with."""

    name = "demo-worker"

    def run(self, task: Any) -> Any:
        job = as_task(self, task, Job, "prompt")
        answer = self.aios.generate(job.prompt, digest=True, **job.options)
        for piece in answer:
            print(piece, end="", flush=True)
        return msgspec.to_builtins(answer.result())
