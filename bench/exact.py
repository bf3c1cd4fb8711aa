"""Exactness: random schedules against solo runs of the same contexts, logits bit for bit.

Twelve contexts share four slots: batches of random neighbours, random preemption, snapshots
restored into whatever slot, and replay where the snapshot had to go. Each drawn token brings a
hash chained over the raw logits so far; a step differs when its hash is not the solo run's, so
whatever follows a difference differs too.
"""

from __future__ import annotations

import random
import time
from itertools import zip_longest
from statistics import median
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from aios.agents import connect
from aios.kernel.config import embedded_model
from aios.kernel.core.batcher import Batcher
from aios.kernel.core.certify import certify
from aios.kernel.core.llama import COMPANY, Engine
from aios.kernel.core.protocol import Decoded, Halt, Prefilled, Run, Segment
from aios.syscalls.messages import Decoding

from .common import Progress, system, text, threads

NAME, TARGET = "exact", 0.0
SLOTS, WINDOW = 4, 1024
PROMPTS = (9, 20, 33, 64, 65, 100, 127, 150, 210, 270, 340, 640)  # tokens: one context each
ROOMY = 1 << 30  # bytes for snapshots: room for all
START, PREEMPT = 0.7, 0.25  # chances, per step, that one more starts and that one is preempted

Sabotage = Literal["unified", "lost-token"]
Record = list[tuple[int, bytes]]  # of each step: the token drawn, the hash of all logits so far


class Forgetful(Engine):
    """Loses the last token at each restore; another stands in its place."""

    def restore(self, slot: int, snapshot: NDArray[np.uint8]) -> None:
        super().restore(slot, snapshot)
        lost = self.length(slot) - 1
        self.clear(slot, lost)
        self.decode([(slot, COMPANY, lost)])


def run(
    progress: Progress, steps: int = 2000, seed: int = 1, sabotage: Sabotage | None = None,
    prompts: tuple[int, ...] = PROMPTS, room: float = 0.5,
) -> dict[str, Any]:  # fmt: skip
    """Schedule at least `steps` decode batches; with a `sabotage`, some of them must differ.

    Every second schedule has snapshots for `room` of all tokens: what is not kept is replayed.
    """
    kind = Forgetful if sabotage == "lost-token" else Engine
    engine = kind(
        embedded_model(), slots=SLOTS, window=WINDOW, threads=threads(),
        unified=sabotage == "unified",
    )  # fmt: skip
    certified, _ = certify(engine)
    jobs = make_jobs(engine, prompts, steps)
    solo = []
    for number, job in enumerate(jobs):
        progress(f"solo run {number + 1} of {len(jobs)}")
        solo.append(Schedule(Batcher(engine, certified, ROOMY), [job], random.Random()).alone())
    found = scheduled(progress, engine, certified, jobs, solo, steps, seed, room)
    ours: dict[str, Any] = {"seed": seed, "certified": certified, **found}
    if sabotage is None:
        ours["cost"] = exact_cost(progress, engine, certified, min(24, steps))
        ours["kernel"] = kernel = through_kernel(progress, jobs, solo)
        found = {key: found[key] + kernel[key] for key in ("compared", "differing")}
    engine.close()
    return {
        "bench": NAME,
        "ratio": found["differing"] / found["compared"],
        "target": TARGET,
        "ours": ours,
        "peer": {"solo_steps": sum(map(len, solo))},
    }


Job = tuple[list[int], Decoding]


def make_jobs(engine: Engine, prompts: tuple[int, ...], steps: int) -> list[Job]:
    """Greedy, sampled, and with penalties; so long that a few schedules make up `steps`."""
    tokens = engine.tokenize(text(), start=True)
    jobs = []
    for number, length in enumerate(prompts):
        decoding = Decoding(
            max_tokens=max(6, min(140, steps // 14)) * (8 + number) // 12,
            temperature=0.0 if number % 2 else 0.9,
            top_p=0.95 if number % 4 == 0 else 1.0,
            repeat_penalty=1.1 if number % 3 == 0 else 1.0,
            seed=number,
            ignore_eos=True,
            digest=True,
        )
        jobs.append((tokens[100 * number :][:length], decoding))
    return jobs


class Schedule:
    """All `jobs` on one batcher, by the kernel's protocol; what each step drew."""

    def __init__(self, batcher: Batcher, jobs: list[Job], chance: random.Random) -> None:
        self.batcher, self.jobs, self.chance = batcher, jobs, chance
        self.records: list[Record] = [[] for _ in jobs]
        self.waiting = set(range(len(jobs)))
        self.running: set[int] = set()
        self.drew: set[int] = set()  # since they were dispatched

    def alone(self) -> Record:
        """The record of the first job, undisturbed."""
        self.dispatch(0)
        while self.running:
            self.step()
        self.batcher.drop(0)
        return self.records[0]

    def random(self, *, at_any_time: bool) -> list[Record]:
        """The records of all jobs. Preempt `at_any_time`, or only a context that drew a token in
        this turn: else one that must be replayed each turn would never get on."""
        while self.waiting or self.running:
            while self.waiting and len(self.running) < SLOTS and self.chance.random() < START:
                self.dispatch(self.chance.choice(sorted(self.waiting)))
            victims = sorted(self.running if at_any_time else self.running & self.drew)
            if victims and self.chance.random() < PREEMPT:
                self.batcher.halt(Halt(self.chance.choice(victims), "preempted"))
            if self.running:
                self.step()
        for ctx in range(len(self.jobs)):
            self.batcher.drop(ctx)
        return self.records

    def dispatch(self, ctx: int) -> None:
        self.waiting.remove(ctx)
        self.running.add(ctx)
        self.drew.discard(ctx)
        tokens, decoding = self.jobs[ctx]
        drawn = [token for token, _ in self.records[ctx]]
        history: list[Segment] = [(Prefilled, tokens)]
        if drawn:
            history.append((Decoded, drawn))
        digest = self.records[ctx][-1][1] if drawn else b""
        self.batcher.run(Run(ctx, 0, history, len(drawn), decoding, digest))

    def step(self) -> None:
        step = self.batcher.step()
        for out in step.outs:
            if out.token is not None:
                self.records[out.ctx].append((out.token, out.digest))
                self.drew.add(out.ctx)
        for halted in step.halted:
            self.running.remove(halted.ctx)
            if halted.why == "preempted":
                self.waiting.add(halted.ctx)
            elif halted.why != "length":
                raise RuntimeError(f"context {halted.ctx} ended: {halted.why} {halted.error}")


def scheduled(
    progress: Progress, engine: Engine, certified: int, jobs: list[Job], solo: list[Record],
    steps: int, seed: int, room: float,
) -> dict[str, int]:  # fmt: skip
    """Random schedules, every second one with little room for snapshots, until `steps` are done."""
    totals = dict.fromkeys(
        ("schedules", "steps", "compared", "differing", "saves", "restores", "replayed"), 0
    )
    token_bytes = engine.cache_bytes // (engine.cells * engine.streams)
    tokens = sum(len(prompt) + decoding.max_tokens for prompt, decoding in jobs)
    tight = int(room * tokens) * token_bytes
    while totals["steps"] < steps or totals["schedules"] < 2:
        progress(f"{totals['steps']} of {steps} random steps, {totals['differing']} differ")
        roomy = totals["schedules"] % 2 == 0
        batcher = Batcher(engine, certified, ROOMY if roomy else tight)
        chance = random.Random(f"{seed} {totals['schedules']}")
        records = Schedule(batcher, jobs, chance).random(at_any_time=roomy)
        totals["schedules"] += 1
        for mine, theirs in zip(records, solo, strict=True):
            totals["compared"] += len(theirs)
            totals["differing"] += sum(a != b for a, b in zip_longest(mine, theirs))
        for counter in ("steps", "saves", "restores", "replayed"):
            totals[counter] += getattr(batcher, counter)
    return totals


def exact_cost(progress: Progress, engine: Engine, certified: int, count: int) -> float:
    """Time of decoding on all slots within the certified limit, over the same without a limit."""
    progress("what exactness costs")
    tokens = engine.tokenize(text(), start=True)[:32]
    decoding = Decoding(max_tokens=count, ignore_eos=True)
    seconds: dict[int, list[float]] = {certified: [], 0: []}
    for _ in range(3):
        for limit, times in seconds.items():
            schedule = Schedule(
                Batcher(engine, limit, ROOMY), [(tokens, decoding)] * SLOTS, random.Random()
            )
            for ctx in range(SLOTS):
                schedule.dispatch(ctx)
            begin = time.perf_counter()
            while schedule.running:
                schedule.step()
            times.append(time.perf_counter() - begin)
            for ctx in range(SLOTS):
                schedule.batcher.drop(ctx)
    return median(seconds[certified]) / median(seconds[0])


# --- through system calls --------------------------------------------------------------------


def through_kernel(progress: Progress, jobs: list[Job], solo: list[Record]) -> dict[str, int]:
    """The same contexts all at once by llm.generate, preempted by quantum. A result that is not
    the solo run's counts with all its steps."""
    progress("through system calls")
    with (
        system(
            progress, slots=SLOTS, ctx=WINDOW, policy="rr", quantum=8, threads=threads()
        ) as home,
        connect(home, "bench") as aios,
    ):
        calls = [
            aios.generate(tokens, stream=False, **msgspec.structs.asdict(decoding))
            for tokens, decoding in jobs
        ]
        results = [call.result() for call in calls]
    totals = {"compared": 0, "differing": 0, "switches": 0}
    for result, record in zip(results, solo, strict=True):
        same = result.tokens == [token for token, _ in record]
        same = same and result.digest == record[-1][1].hex()
        totals["compared"] += len(record)
        totals["differing"] += 0 if same else len(record)
        totals["switches"] += result.timings.switches
    return totals
