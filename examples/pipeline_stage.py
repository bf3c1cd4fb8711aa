"""One stage of `pipeline`: receives cards, writes a field of each, and sends them on."""

from __future__ import annotations

from typing import Any

from aios.agents import Agent


class PipelineStage(Agent):
    """Its task is {"reads": field, "writes": field, "prompt", "max_tokens", "to": pid}.

    The prompt is text to go on from, or chat messages, with {} for the field that is read. An
    empty card is the end, for the stages behind it as well. Its result is how many it wrote on.
    """

    name = "pipeline_stage"

    def run(self, task: dict[str, Any]) -> int:
        cards = 0
        while card := self.aios.recv().body:
            prompt = filled(task["prompt"], card[task["reads"]])
            answer = self.aios.generate(
                prompt, raw=True, max_tokens=task["max_tokens"], stop=["\n"]
            )
            card[task["writes"]] = answer.text.strip()
            print(f"{card['number']}: {card[task['writes']]}")
            self.aios.send(task["to"], card)
            cards += 1
        self.aios.send(task["to"], {})
        return cards


def filled(prompt: str | list[dict[str, str]], text: str) -> str | list[dict[str, str]]:
    if isinstance(prompt, str):
        return prompt.replace("{}", text)
    return [{**message, "content": message["content"].replace("{}", text)} for message in prompt]
