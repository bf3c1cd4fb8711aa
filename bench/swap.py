"""Swapping: more contexts than slots and RAM have room for, and each resumes exactly.

Each context is prefilled and generates some tokens; by the time all have, most are on disk. Then
each goes back to its second token, in random order, and must draw what it drew, from the same bits.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from aios.kernel.core.batcher import Batcher
from aios.kernel.core.certify import certify
from aios.kernel.core.disk import Disk
from aios.kernel.core.engine import CHUNK_TOKENS
from aios.kernel.core.llama import LlamaEngine
from aios.kernel.core.protocol import DECODED, PREFILLED, Run, Segment
from aios.syscalls.llm import Decoding

from .common import Progress, Target, model, text, threads

TARGET = Target(0.0)
CONTEXTS, TOKENS, SLOTS = 300, 500, 8
RAM_BYTES, DISK_BYTES = 1 << 30, 16 << 30
FIRST_TOKENS, LATER_TOKENS = 2, 4  # drawn before and behind the point that each goes back to

Record = list[tuple[int, bytes]]  # of each token drawn: the token, the hash of all logits so far


def run(
    progress: Progress, contexts: int = CONTEXTS, tokens: int = TOKENS, slots: int = SLOTS,
    ram: int = RAM_BYTES, seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    window = tokens + FIRST_TOKENS + LATER_TOKENS + CHUNK_TOKENS
    engine = LlamaEngine(model(), slots=slots, window=window, threads=threads())
    certified, _ = certify(engine)
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        disk = Disk(Path(folder), engine.fingerprint(certified), DISK_BYTES)
        batcher = Batcher(engine, certified, ram, disk)
        prompts = make_prompts(engine, contexts, tokens)
        begin = time.perf_counter()
        drawn = first_pass(progress, batcher, prompts, slots)
        middle = time.perf_counter()
        before = batcher.counters()
        again = second_pass(progress, batcher, prompts, drawn, slots, random.Random(seed))
        seconds = time.perf_counter() - middle
        problems = batcher.prefix_cache.check()
    engine.close()
    if problems:
        raise RuntimeError("; ".join(problems))
    after = batcher.counters()
    differ = sum(mine != record[FIRST_TOKENS:] for mine, record in zip(again, drawn, strict=True))
    ours = {
        "contexts": contexts,
        "tokens": tokens,
        "differing": differ,
        "resumed_per_second": contexts / seconds,
        "restores": after.restores - before.restores,
        "replayed": after.replayed - before.replayed - contexts,  # each computes its last token
        "lost": after.lost,
        "written": after.written,
        "read": after.read,
        "on_disk": before.disk_bytes,
        "peak_ram": batcher.prefix_cache.tiers.peak,
    }
    peer = {"prefilled_per_second": contexts / (middle - begin)}
    return {
        "ratio": differ / contexts,
        "ours": ours,
        "peer": peer,
    }


def make_prompts(engine: LlamaEngine, contexts: int, tokens: int) -> list[list[int]]:
    """Make prompts that each begin with another token, so that no two share a prefix."""
    story = engine.tokenize(text(), start=True)
    return [[1000 + at, *story[at : at + tokens - 1]] for at in range(contexts)]


def first_pass(
    progress: Progress, batcher: Batcher, prompts: list[list[int]], slots: int
) -> list[Record]:
    drawn: list[Record] = [[] for _ in prompts]
    for at in range(0, len(prompts), slots):
        progress(f"{at} of {len(prompts)} contexts prefilled")
        for ctx in range(at, min(at + slots, len(prompts))):
            batcher.run(Run(ctx, 0, [(PREFILLED, prompts[ctx])], 0, decoding(), b""))
        collect(batcher, drawn)
    return drawn


def second_pass(
    progress: Progress, batcher: Batcher, prompts: list[list[int]], drawn: list[Record],
    slots: int, chance: random.Random,
) -> list[Record]:  # fmt: skip
    """Resume all contexts in random order, in groups. While one group runs, the next is read
    ahead."""
    order = chance.sample(range(len(prompts)), len(prompts))
    groups = [order[at : at + slots] for at in range(0, len(order), slots)]
    again: list[Record] = [[] for _ in prompts]
    for number, group in enumerate(groups):
        progress(f"{number * slots} of {len(prompts)} contexts resumed")
        for ctx in group:
            first = [token for token, _ in drawn[ctx][:FIRST_TOKENS]]
            history: list[Segment] = [(PREFILLED, prompts[ctx]), (DECODED, first)]
            _, digest = drawn[ctx][FIRST_TOKENS - 1]
            batcher.run(Run(ctx, 0, history, FIRST_TOKENS, decoding(), digest))
        for ctx in groups[number + 1] if number + 1 < len(groups) else []:
            batcher.prefetch(ctx)
        collect(batcher, again)
    return again


def decoding() -> Decoding:
    return Decoding(max_tokens=FIRST_TOKENS + LATER_TOKENS, ignore_eos=True, digest=True)


def collect(batcher: Batcher, records: list[Record]) -> None:
    """Step until all that run have come to their end."""
    while batcher.running:
        step = batcher.step()
        for out in step.outs:
            if out.token is not None:
                records[out.ctx].append((out.token, out.digest))
        for halted in step.halted:
            if halted.why != "length":
                raise RuntimeError(f"context {halted.ctx} ended: {halted.why} {halted.error}")
