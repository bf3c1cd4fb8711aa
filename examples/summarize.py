"""Summarize a text: workers shorten its pieces side by side, a last generation merges them."""

from __future__ import annotations

import re
import sys
from typing import Any

from aios.agents import Agent
from aios.examples._texts import ALICE, read_text
from aios.examples.summarize_piece import shorten

WORKERS = 4  # alive at once
PIECE = 200  # tokens, about: of longer ones the model keeps only the beginning
MERGE = 640  # tokens of partial summaries that one generation merges


class Summarize(Agent):
    """Its task is the path of a text, or {"path" or "text": ..., "pieces": n}; without one it takes
    the first chapter of Alice.

    Its result is {"summary", "pieces": [{"pid", "summary"}, ...]}, in the text's order, with the
    pid of the worker of each.
    """

    name = "summarize"

    def run(self, task: Any) -> dict[str, Any]:
        task = {"path": task} if isinstance(task, str) else task or {}
        text = task["text"] if "text" in task else read_text(task.get("path", ALICE))
        if not text.strip():
            sys.exit("the text is empty")
        count = task.get("pieces")
        if count is not None and count < 1:
            sys.exit(f"{count} pieces: give 1 or more")
        pieces = parts = self.shorten_all(self.cut(text, count))
        while len(self.aios.tokenize(merged := _joined(parts))) > MERGE:
            parts = self.shorten_all(self.cut(merged, None))
        summary = shorten(self.aios, merged, max_tokens=96)
        print(f"\n{summary}")
        return {"summary": summary, "pieces": pieces}

    def cut(self, text: str, wanted: int | None) -> list[str]:
        """`text` in at most `wanted` pieces of about as many tokens each, between paragraphs if
        there are enough of them, else between sentences."""
        for gap in (r"\n\s*\n", r"(?<=[.!?])\s+"):
            parts = re.split(gap, text.strip())
            sizes = [len(self.aios.tokenize(part)) for part in parts]
            count = wanted or max(1, round(sum(sizes) / PIECE))
            if len(parts) >= count:
                break
        pieces: list[list[str]] = [[] for _ in range(count)]
        begin = 0
        for part, size in zip(parts, sizes, strict=True):
            pieces[begin * count // sum(sizes)].append(" ".join(part.split()))
            begin += size
        return [" ".join(piece) for piece in pieces if piece]

    def shorten_all(self, texts: list[str]) -> list[dict[str, Any]]:
        """A worker for each text; not more than WORKERS of them at a time."""
        pieces: list[dict[str, Any]] = []
        waiting: set[int] = set()
        for number, text in enumerate(texts, 1):
            if len(waiting) == WORKERS:
                self.collect(waiting, pieces)
            pid = self.aios.spawn("summarize_piece", text, name=f"piece-{number}")
            waiting.add(pid)
            pieces.append({"pid": pid})
        while waiting:
            self.collect(waiting, pieces)
        return pieces

    def collect(self, waiting: set[int], pieces: list[dict[str, Any]]) -> None:
        end = self.aios.wait()
        if end.code != 0:
            raise RuntimeError(f"{end.name} ended with {end.code} ({end.reason}): {end.result}")
        waiting.remove(end.pid)
        next(piece for piece in pieces if piece["pid"] == end.pid)["summary"] = end.result
        print(f"{end.name}: {end.result}")


def _joined(pieces: list[dict[str, Any]]) -> str:
    return "\n\n".join(piece["summary"] for piece in pieces)
