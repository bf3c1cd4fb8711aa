"""The agent of the agents bench: a chat of several turns, with the time of a tool between them."""

from __future__ import annotations

import time
from typing import Any

from aios.agents import Agent


class Talker(Agent):
    name = "talker"

    def run(self, task: Any) -> list[tuple[float, float, int, int]]:
        """Hold a chat. `task` has the pid of the `starter`, the `system` prompt, the messages of
        the `user`, the `count` of tokens to generate each time, and the `pause` between turns.
        Return for each turn when it began, when it ended, the tokens generated, and the tokens that
        entered."""
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
