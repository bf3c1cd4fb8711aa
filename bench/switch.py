"""Context switch: save and restore 1,000 tokens, against computing them again.

Once on the engine alone; once through the system, where two contexts share one slot: how much
longer the next token takes when the other context has it.
"""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from statistics import median
from typing import Any

from aios.agents import Aios, connect
from aios.kernel.core.engine import CHUNK_TOKENS
from aios.kernel.core.llama import LlamaEngine
from aios.kernel.core.state_layout import BlockSlice

from .common import Progress, Target, model, system, text, threads

TARGET = Target(0.01)
ROUNDS, TOKENS, QUANTUM = 3, 1000, 8
NEW_TOKENS = 128  # that each of the two contexts generates


def run(progress: Progress, tokens: int = TOKENS, new: int = NEW_TOKENS) -> dict[str, Any]:
    progress("save, restore and prefill on the engine")
    moved, prefilled, size = on_engine(tokens)
    shared = through_system(progress, tokens, new)
    return {
        "ratio": moved / prefilled,
        "ours": {"tokens": tokens, "save_and_restore": moved, "bytes": size, "system": shared},
        "peer": {"prefill": prefilled},
    }


def on_engine(tokens: int) -> tuple[float, float, int]:
    """Return the seconds to save and restore, the seconds of the prefill, and the snapshot's
    bytes."""
    engine = LlamaEngine(model(), slots=2, window=tokens + CHUNK_TOKENS, threads=threads())
    prompt = tuple(engine.tokenize(text(), start=True)[:tokens])
    spans = [(pos, min(CHUNK_TOKENS, tokens - pos)) for pos in range(0, tokens, CHUNK_TOKENS)]
    moved, prefilled = [], []
    for _ in range(ROUNDS + 2):
        begin = time.perf_counter()
        for pos in range(0, tokens, CHUNK_TOKENS):
            engine.prefill(0, prompt[pos : pos + CHUNK_TOKENS], pos)
        middle = time.perf_counter()
        rows = engine.cut(0, spans)
        engine.clear(0)
        engine.paste(
            1, [BlockSlice(data, n, 0, n) for data, (_, n) in zip(rows, spans, strict=True)]
        )
        moved.append(time.perf_counter() - middle)
        prefilled.append(middle - begin)
        engine.clear(1)
    engine.close()
    return median(moved), median(prefilled), sum(data.nbytes for data in rows)


def through_system(progress: Progress, tokens: int, new: int) -> dict[str, float]:
    """Return the seconds to the next token: of the same context (step), of the other one
    (switch)."""
    with (
        system(
            progress, slots=1, ctx=tokens + new + CHUNK_TOKENS, policy="rr", quantum=QUANTUM
        ) as home,
        connect(home, "first") as first,
        connect(home, "second") as second,
    ):
        prompts = [first.tokenize(text())[at : at + tokens] for at in (0, tokens)]
        came: list[tuple[float, int]] = []
        progress("two contexts on one slot")
        readers = [
            threading.Thread(target=_read, args=(aios, number, prompts[number], new, came))
            for number, aios in enumerate((first, second))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        stats = first.stats()
    came.sort()
    gaps = [(b - a, whose == other) for (a, whose), (b, other) in pairwise(came)]
    step = median(gap for gap, same in gaps if same)
    switch = median(gap for gap, same in gaps if not same)
    return {"step": step, "switch": switch, "costs": switch - step, "restores": stats.restores}


def _read(
    aios: Aios, number: int, prompt: list[int], new: int, came: list[tuple[float, int]]
) -> None:
    """Note when each token came."""
    for _ in aios.generate(prompt, max_tokens=new, ignore_eos=True).pieces():
        came.append((time.perf_counter(), number))
