"""One stage of `pipeline`: receives cards, writes a field of each, and sends them on."""

from __future__ import annotations

from typing import Any

import msgspec

from aios.agents import Agent
from aios.examples._texts import as_task


class Stage(msgspec.Struct, forbid_unknown_fields=True):
    reads: str
    writes: str
    prompt: str | list[dict[str, str]]
    max_tokens: int
    to: int


class PipelineStage(Agent):
    """Its task is {"reads": field, "writes": field, "prompt", "max_tokens", "to": pid}.

    The prompt is text to go on from, or chat messages, with {} for the field that is read. An
    empty card is the end, for the stages behind it as well. Its result is how many it wrote on.
    """

    name = "pipeline_stage"

    def run(self, task: Any) -> int:
        stage = as_task(self, task, Stage)
        cards = 0
        while card := self.aios.recv().body:
            prompt = filled(stage.prompt, card[stage.reads])
            answer = self.aios.generate(prompt, raw=True, max_tokens=stage.max_tokens, stop=["\n"])
            card[stage.writes] = answer.text.strip()
            print(f"{card['number']}: {card[stage.writes]}")
            self.aios.send(stage.to, card)
            cards += 1
        self.aios.send(stage.to, {})
        return cards


def filled(prompt: str | list[dict[str, str]], text: str) -> str | list[dict[str, str]]:
    if isinstance(prompt, str):
        return prompt.replace("{}", text)
    return [{**message, "content": message["content"].replace("{}", text)} for message in prompt]
