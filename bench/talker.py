"""The agent of the agents bench: a chat of several turns, with the time of a tool between them."""

from __future__ import annotations

import time
from typing import Any

from aios.agents import Agent


class Talker(Agent):
    name = "talker"

    def run(self, task: Any) -> list[tuple[float, float, int, int]]:
        """`task`: pid of the `starter`, the `system` prompt, what the `user` says turn by turn, the
        `count` to generate each time, the `pause` between. For each turn: when it began, when it
        ended, tokens generated, tokens that entered."""
        self.aios.send(task["starter"], "ready")
        self.aios.recv()
        turns = []
        with self.aios.open(task["system"]) as context:
            for number, said in enumerate(task["user"]):
                if number:
                    time.sleep(task["pause"])  # the tool works
                began = time.monotonic()
                answer = context.generate(
                    said, max_tokens=task["count"], ignore_eos=True, stream=False
                )
                usage = answer.usage
                turns.append((began, time.monotonic(), usage.completion, usage.prompt))
        return turns
