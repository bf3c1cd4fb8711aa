"""Our side of the throughput bench: the system, its agents, and what they are to generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aios.agents import Aios, connect

from .common import Progress, race, system, text, threads

AGENTS, WINDOW = 16, 512  # as many slots as agents; tokens a slot
WRITER = str(Path(__file__).with_name("writer.py"))

Spans = list[tuple[float, float, int]]  # of each agent: when it began, when it ended, its tokens
Round = Callable[[list[list[int]], int], Spans]  # prompts, tokens to generate for each


def make_prompts(aios: Aios) -> list[list[int]]:
    """Make prompts of real text, of 50 to 150 tokens, no two alike."""
    tokens = aios.tokenize(text())
    lengths = [50 + agent * 37 % 101 for agent in range(AGENTS)]
    return [tokens[agent * 150 :][:length] for agent, length in enumerate(lengths)]


def tokens_per_second(spans: Spans) -> float:
    """Return the rate from the first beginning to the last end, prefill included."""
    began, ended, counts = zip(*spans, strict=True)
    return float(sum(counts) / (max(ended) - min(began)))


@contextmanager
def our_system(progress: Progress) -> Iterator[tuple[Aios, Round]]:
    with (
        system(progress, slots=AGENTS, ctx=WINDOW, threads=threads()) as home,
        connect(home, "bench") as aios,
    ):
        yield aios, lambda prompts, new: our_round(aios, prompts, new)


def our_round(aios: Aios, prompts: list[list[int]], new: int) -> Spans:
    ends = race(aios, WRITER, [{"count": new, "tokens": tokens} for tokens in prompts])
    return [(end.result["began"], end.result["ended"], end.result["tokens"]) for end in ends]
