"""One worker of `summarize`: the text that is its task, shorter."""

from __future__ import annotations

import re
from typing import Any

from aios.agents import Agent, Aios
from aios.examples._texts import as_task

# The only wording found that a 135M model follows without inventing a story of its own.
INSTRUCTION = (
    "You're an AI assistant for text re-writing. Rewrite the input text to make it more concise "
    "while preserving its core meaning."
)
WHOLE = re.compile(r".*[.!?]['\"]?(?=\s|$)", re.DOTALL)  # up to the end of the last sentence


def shorten(aios: Aios, text: str, max_tokens: int = 64) -> str:
    """Return the text in the model's shorter words, without a last sentence that max_tokens cut
    off."""
    prompt = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": text}]
    answer = aios.generate(prompt, max_tokens=max_tokens, stop=["\n"]).text.strip()
    whole = WHOLE.match(answer)
    return whole.group() if whole else answer


class SummarizePiece(Agent):
    """Its task is a text; its result that text, shorter."""

    name = "summarize_piece"

    def run(self, task: Any) -> str:
        summary = shorten(self.aios, as_task(self, task, str))
        print(summary)
        return summary
