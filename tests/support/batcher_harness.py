"""A small kernel for a Batcher under test: it dispatches, preempts, and keeps the histories."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios.kernel.core.active_run import ActiveRun
from aios.kernel.core.batcher import Batcher
from aios.kernel.core.disk import Disk
from aios.kernel.core.engine import CHUNK_TOKENS, Engine
from aios.kernel.core.protocol import Halt, Halted, Out, Run
from aios.kernel.llm.context_state import ContextState
from aios.syscalls.llm import Decoding, Logprob

PLENTY = 1 << 30  # bytes for snapshots


def some(max_tokens: int, **options: Any) -> Decoding:
    return Decoding(max_tokens=max_tokens, ignore_eos=True, digest=True, **options)


# Prompts shorter and longer than a chunk, and one that gets past 256 tokens while it decodes: then
# attention over a context without a neighbour takes another path, but for the engine's padding.
JOBS: list[tuple[int, Decoding]] = [
    (253, some(10)),
    (CHUNK_TOKENS, some(14, temperature=0.9, seed=7)),
    (5, some(18, temperature=1.5, top_k=50, top_p=0.9, min_p=0.01, seed=8)),
    (70, some(12, repeat_penalty=1.3, frequency_penalty=0.5, penalty_last=20)),
    (1, some(16, temperature=0.7, presence_penalty=1.0, seed=9)),
    (CHUNK_TOKENS + 1, some(10, stop=["never to be seen"])),
]


def text(engine: Engine, length: int, start: int = 0) -> list[int]:
    """Return `length` tokens of an endless text, from the token `start` on."""
    return [at * 104729 % engine.n_vocab for at in range(start, start + length)]


class CheckedBatcher(Batcher):
    """A Batcher that checks in which slots it runs, and keeps the logits it drew from."""

    def __init__(
        self, engine: Engine, certified: int, snapshot_bytes: int, disk: Disk | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(engine, certified, snapshot_bytes, disk, **options)
        self.logits: list[NDArray[np.float32]] = []
        self.computed = 0  # tokens

    def _prefill(self) -> None:
        if self.engine.row_bytes:
            assert sorted(self.running) == list(range(len(self.running)))
        super()._prefill()

    def _record_entered(self, active: ActiveRun, index: int) -> None:
        self.computed += len(active.pending[0][2])
        if len(active.pending) == 1:  # then a token is drawn
            self.logits.append(self.engine.logits(index).copy())
        super()._record_entered(active, index)


@dataclass
class Job:
    """One generation: its prompt, and its result so far."""

    ctx: int
    prompt: list[int]
    decoding: Decoding
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    digests: list[bytes] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    why: str = ""

    def __post_init__(self) -> None:
        self.context = ContextState()
        self.context.append(self.prompt, 10**6)
        self.context.seal()

    def run(self) -> Run:
        digest = self.digests[-1] if self.digests else b""
        history = [(how, list(tokens)) for how, tokens in self.context.history]
        return Run(self.ctx, 0, history, len(self.tokens), self.decoding, digest)

    def take(self, out: Out) -> None:
        if out.digest:
            self.digests.append(out.digest)
        if out.token is not None:
            self.context.draw(out.token)
            self.tokens.append(out.token)
            self.text += out.text
        if out.logprob is not None:
            self.logprobs.append(out.logprob)

    def end(self, halted: Halted) -> None:
        if halted.why != "preempted":  # or it is held back once more when the job goes on
            self.text += halted.text
        self.why = halted.why

    @property
    def result(self) -> tuple[list[int], str, list[bytes], str]:
        return self.tokens, self.text, self.digests, self.why


def report(batcher: Batcher, jobs: dict[int, Job]) -> list[Halted]:
    """Make one step, and hand its tokens to their jobs."""
    step = batcher.step()
    for out in step.outs:
        jobs[out.ctx].take(out)
    for halted in step.halted:
        jobs[halted.ctx].end(halted)
    return step.halted


def finish(batcher: Batcher, *jobs: Job) -> None:
    """Run jobs at once, to their end."""
    for job in jobs:
        batcher.run(job.run())
    while batcher.running:
        report(batcher, {job.ctx: job for job in jobs})


def run_solo(engine: Engine, prompt: list[int], decoding: Decoding) -> Job:
    """Run a job with nothing else on the engine: every schedule must come to the same."""
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    job = Job(10**6, prompt, decoding)
    finish(batcher, job)
    batcher.drop(job.ctx)
    return job


def run_all_solo(engine: Engine) -> list[Job]:
    """Run each of the JOBS with nothing else on the engine."""
    return [run_solo(engine, text(engine, n, i), decoding) for i, (n, decoding) in enumerate(JOBS)]


def at_random(batcher: Batcher, jobs: list[Job], seed: int) -> None:
    """Run jobs with dispatches and preemptions at random moments."""
    dice = random.Random(seed)
    by_ctx = {job.ctx: job for job in jobs}
    waiting = sorted(by_ctx)
    while waiting or batcher.running:
        while waiting and len(batcher.running) < batcher.engine.slots and dice.random() < 0.7:
            batcher.run(by_ctx[waiting.pop(dice.randrange(len(waiting)))].run())
        if batcher.running and dice.random() < 0.25:
            ctx = dice.choice([run.sequence.ctx for run in batcher.running.values()])
            batcher.halt(Halt(ctx, "preempted"))
        waiting += [halted.ctx for halted in report(batcher, by_ctx) if halted.why == "preempted"]


def take_turns(batcher: CheckedBatcher, jobs: list[Job]) -> None:
    """Run jobs in turns of some tokens; after each turn wait until all is on disk."""
    by_ctx = {job.ctx: job for job in jobs}
    while not all(job.why == "length" for job in jobs):
        for job in jobs:
            if job.why != "length":
                batcher.run(job.run())
                for _ in range(3):
                    report(batcher, by_ctx)
                batcher.halt(Halt(job.ctx, "preempted"))
                batcher.prefix_cache.tiers.flush()
