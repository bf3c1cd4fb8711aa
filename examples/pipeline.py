"""Index cards of a text: paragraphs go through stages that pass them on as messages."""

from __future__ import annotations

from typing import Any

import msgspec

from aios.agents import Agent
from aios.examples._texts import ALICE, as_task, cut, read_text
from aios.examples.summarize_piece import INSTRUCTION
from aios.syscalls.errors import TimedOut

MAX_AHEAD = 8  # items on their way: mailboxes are bounded
CHECK_INTERVAL_S = 1.0  # without a card, until the stages are looked at

WRECK = "The ship went down in the storm, and only two sailors reached the shore."
DOOR = "Nobody in the village knew who had painted the church door red."
TRAIN = "He ran for the last train, but its lights were already far away."
GIST = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": "{}"}]
TITLE = (
    f"Text: {WRECK}\nTitle: Two Sailors\n\nText: {DOOR}\nTitle: The Red Door\n\n"
    f"Text: {TRAIN}\nTitle: Too Late\n\nText: {{}}\nTitle:"
)
MOOD = (
    f"Text: {WRECK}\nMood: sad\n\nText: {DOOR}\nMood: puzzled\n\n"
    f"Text: {TRAIN}\nMood: worried\n\nText: {{}}\nMood:"
)
STAGES: list[dict[str, Any]] = [
    {"reads": "text", "writes": "gist", "prompt": GIST, "max_tokens": 56},
    {"reads": "gist", "writes": "title", "prompt": TITLE, "max_tokens": 12},
    {"reads": "gist", "writes": "mood", "prompt": MOOD, "max_tokens": 6},
]


class Task(msgspec.Struct, forbid_unknown_fields=True):
    path: str = str(ALICE)
    items: list[str] = []
    stages: list[dict[str, Any]] = msgspec.field(default_factory=STAGES.copy)


class Pipeline(Agent):
    """Its task is the path of a text, or {"path": ... or "items": [text, ...], "stages": [...]};
    without one it takes the first paragraphs of Alice.

    Its result is {"cards": [...], "stages": [pid, ...]}: of each item, in order, a card with its
    text and what each stage wrote.
    """

    name = "pipeline"

    def run(self, task: Any) -> dict[str, Any]:
        job = as_task(self, task, Task, "path")
        items = job.items or paragraphs(read_text(job.path))
        stages: list[int] = []
        to = self.aios.pid
        for stage in reversed(job.stages):
            to = self.aios.spawn("pipeline_stage", {**stage, "to": to}, name=stage["writes"])
            stages.insert(0, to)
        cards: list[dict[str, Any]] = []
        for number, text in enumerate(items):
            if number >= MAX_AHEAD:
                cards.append(self.card(stages))
            self.aios.send(stages[0], {"number": number, "text": text})
        while len(cards) < len(items):
            cards.append(self.card(stages))
        self.aios.send(stages[0], {})
        for pid in stages:
            self.aios.wait(pid)
        return {"cards": cards, "stages": stages}

    def card(self, stages: list[int]) -> dict[str, Any]:
        """Return the next card of the last stage. Raises RuntimeError if a stage ends before it
        comes."""
        while True:
            try:
                card: dict[str, Any] = self.aios.recv(stages[-1], timeout=CHECK_INTERVAL_S).body
                print({field: card[field] for field in card if field != "text"})
                return card
            except TimedOut:
                self.check(stages)

    def check(self, stages: list[int]) -> None:
        alive = {process.pid for process in self.aios.ps()}
        for pid in reversed(stages):  # one that ends takes those before it along
            if pid not in alive:
                end = self.aios.wait(pid)
                raise RuntimeError(f"stage {end.name} ended ({end.reason}): {end.result}")


def paragraphs(text: str, count: int = 6) -> list[str]:
    """Return the first `count` paragraphs that are neither a line of speech nor longer than the
    model grasps; without any, the first pieces of the text."""
    found = [" ".join(part.split()) for part in text.split("\n\n")]
    short = [part for part in found if 300 < len(part) < 1000][:count]
    return short or [piece for part in found for piece in cut(part)][:count]
