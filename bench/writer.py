"""The agent of the throughput bench: waits for the word, generates, tells when."""

from __future__ import annotations

import time
from typing import Any

from aios.agents import Agent


class Writer(Agent):
    name = "writer"

    def run(self, task: Any) -> dict[str, Any]:
        """Wait for the word, and generate. `task` has the pid of the `starter`, the prompt's
        `tokens`, and the `count` of tokens to generate."""
        self.aios.send(task["starter"], "ready")
        self.aios.recv()
        began = time.monotonic()
        generation = self.aios.generate(task["tokens"], max_tokens=task["count"], ignore_eos=True)
        pieces = list(generation.pieces())
        return {"began": began, "ended": time.monotonic(), "tokens": len(pieces)}
