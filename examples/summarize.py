"""Summarize a text: workers shorten its pieces side by side, a last generation merges them."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from aios.agents import Agent
from aios.examples._texts import ALICE, as_task, cut, read_text
from aios.examples.summarize_piece import shorten

MAX_WORKERS = 4  # at a time
MERGE_BYTES = 1800  # of partial summaries that one generation merges


class Task(msgspec.Struct, forbid_unknown_fields=True):
    path: str = str(ALICE)
    text: str | None = None
    pieces: int | None = None


class Summarize(Agent):
    """Its task is the path of a text, or {"path" or "text": ..., "pieces": n}; without one it takes
    the first chapter of Alice.

    Its result is {"summary", "pieces": [{"pid", "summary"}, ...]}: those that were merged, in the
    text's order, with the pid of the worker of each.
    """

    name = "summarize"

    def run(self, task: Any) -> dict[str, Any]:
        job = as_task(self, task, Task, "path")
        text = read_text(job.path) if job.text is None else job.text
        if not text.strip():
            sys.exit("the text is empty")
        if job.pieces is not None and job.pieces < 1:
            sys.exit(f"{job.pieces} pieces: give 1 or more")
        parts = self.shorten_all(cut(text, job.pieces))
        while len((merged := _joined(parts)).encode()) > MERGE_BYTES:
            parts = self.shorten_all(cut(merged))
        summary = shorten(self.aios, merged, max_tokens=96)
        print(f"\n{summary}")
        return {"summary": summary, "pieces": parts}

    def shorten_all(self, texts: list[str]) -> list[dict[str, Any]]:
        """Start a worker for each text, at most MAX_WORKERS at a time."""
        pieces: list[dict[str, Any]] = []
        waiting: set[int] = set()
        for number, text in enumerate(texts, 1):
            if len(waiting) == MAX_WORKERS:
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
