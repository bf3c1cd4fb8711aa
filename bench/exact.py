"""Exactness: random schedules against solo runs of the same contexts, logits bit for bit.

Contexts share four slots: batches of random neighbours, random preemption, snapshots that come back
from RAM, from disk or not at all, contexts that begin alike, forks, and cores that die. Each drawn
token brings a hash chained over the raw logits so far; a step differs when its hash is not the solo
run's, so whatever follows a difference differs too.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import msgspec
import psutil

from aios.agents import Aios, connect
from aios.kernel.core.batcher import Batcher
from aios.kernel.core.certify import certify
from aios.kernel.core.disk import Disk
from aios.kernel.core.llama import PADDING_TOKEN, LlamaEngine
from aios.kernel.core.protocol import DECODED, PREFILLED, Halt, Run, Segment
from aios.kernel.core.state_layout import BlockSlice
from aios.shell.launch import init_of
from aios.syscalls.llm import Decoding

from .common import Progress, Target, model, system, text, threads

TARGET = Target(0.0)
SLOTS, WINDOW = 4, 1024
PROMPT_TOKENS = (9, 20, 33, 64, 65, 100, 127, 150, 210, 270, 340, 640)  # one context each
ROOMY_BYTES = 1 << 30  # room for all snapshots
# Probabilities in each step: that one more context starts, that one is preempted, that the core
# dies; of a file, that it is damaged by that; of a token, that the kernel or the core is killed.
P_START, P_PREEMPT, P_DIE, P_DAMAGE, P_KILL = 0.7, 0.25, 0.02, 0.2, 0.02
MAX_KILLS = 6  # of cores, in a schedule

Sabotage = Literal["unified", "lost-token"]
Record = list[tuple[int, bytes]]  # of each step: the token drawn, the hash of all logits so far


class Job(NamedTuple):
    history: list[Segment]
    decoding: Decoding


class Forgetful(LlamaEngine):
    """Loses the last token at each restore; another stands in its place. But not before it is
    certified: the self-test would see that, and have nothing restored."""

    forgets = False

    def paste(self, slot: int, parts: list[BlockSlice]) -> None:
        super().paste(slot, parts)
        if not self.forgets:
            return
        lost = self.length(slot) - 1
        self.clear(slot, lost)
        self.decode([(slot, PADDING_TOKEN, lost)])


def run(
    progress: Progress, steps: int = 7000, seed: int = 1, sabotage: Sabotage | None = None,
    prompts: tuple[int, ...] = PROMPT_TOKENS, room: float = 0.5,
) -> dict[str, Any]:  # fmt: skip
    """Schedule at least `steps` decode batches; with a `sabotage`, some of them must differ.

    The first of four schedules has room for all snapshots in RAM, the second for `room` of all
    tokens, without a disk, the third for a quarter of that and a disk, the last for none, and its
    core is killed.
    """
    kind = Forgetful if sabotage == "lost-token" else LlamaEngine
    engine = kind(
        model(), slots=SLOTS, window=WINDOW, threads=threads(),
        unified=sabotage == "unified",
    )  # fmt: skip
    certified, _ = certify(engine)
    if isinstance(engine, Forgetful):
        engine.forgets = True
    jobs = make_jobs(engine, prompts, steps)
    solo = run_solo(progress, engine, certified, jobs)
    forks = make_forks(jobs, solo)
    every, records = [*jobs, *forks], [*solo, *run_solo(progress, engine, certified, forks)]
    found = scheduled(progress, engine, certified, every, records, steps, seed, room)
    ours: dict[str, Any] = {"seed": seed, "certified": certified, **found}
    if sabotage is None:
        ours["cost"] = exact_cost(progress, engine, certified, min(24, steps))
        ours["kernel"] = kernel = through_kernel(progress, jobs, solo)
        found = {key: found[key] + kernel[key] for key in ("compared", "differing")}
    engine.close()
    return {
        "ratio": found["differing"] / found["compared"],
        "ours": ours,
        "peer": {"solo_steps": sum(map(len, records))},
    }


def make_jobs(engine: LlamaEngine, prompts: tuple[int, ...], steps: int) -> list[Job]:
    """Make greedy and sampled jobs, some with penalties, so long that a few schedules make up
    `steps`. Every second prompt begins as the one before."""
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
        jobs.append(Job([(PREFILLED, tokens[100 * (number // 2) :][:length])], decoding))
    return jobs


def make_forks(jobs: list[Job], solo: list[Record]) -> list[Job]:
    """Make jobs that begin as others, up to the middle of what those generated: for each third job
    another attempt with another seed, and one that is told something else."""
    forks = []
    for (history, decoding), record in list(zip(jobs, solo, strict=True))[1::3]:
        drawn = [token for token, _ in record[: len(record) // 2]]
        other = msgspec.structs.replace(decoding, temperature=0.9, seed=decoding.seed + 100)
        forks.append(Job([*history, (DECODED, drawn)], other))
        told = [drawn[-1], *history[0][1][:40]]  # the last token drawn was not decoded
        forks.append(Job([*history, (DECODED, drawn[:-1]), (PREFILLED, told)], decoding))
    return forks


class Schedule:
    """All `jobs` on one batcher, by the kernel's protocol; what each step drew. A core that dies
    is followed by another with the same `disk`."""

    def __init__(
        self, engine: LlamaEngine, certified: int, ram: int, jobs: list[Job], chance: random.Random,
        disk: Path | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.certified, self.ram, self.disk = engine, certified, ram, disk
        self.jobs, self.chance = jobs, chance
        self.records: list[Record] = [[] for _ in jobs]
        self.waiting = set(range(len(jobs)))
        self.running: set[int] = set()
        self.drew: set[int] = set()  # since they were dispatched
        self.batchers: list[Batcher] = []
        self.boot()

    def boot(self) -> None:
        disk = None
        if self.disk is not None:
            disk = Disk(self.disk, self.engine.fingerprint(self.certified), ROOMY_BYTES)
        self.batcher = Batcher(self.engine, self.certified, self.ram, disk)
        self.batchers.append(self.batcher)

    def run_solo(self) -> Record:
        """The record of the first job, undisturbed."""
        self.dispatch(0)
        while self.running:
            self.step()
        self.batcher.drop(0)
        return self.records[0]

    def random(self, *, at_any_time: bool, kills: int = 0) -> list[Record]:
        """Run all jobs on random slots and return their records. Preempt `at_any_time`, or only a
        context that drew a token in this turn: one that must be replayed each turn would never get
        on."""
        while self.waiting or self.running:
            while self.waiting and len(self.running) < SLOTS and self.chance.random() < P_START:
                self.dispatch(self.chance.choice(sorted(self.waiting)))
            victims = sorted(self.running if at_any_time else self.running & self.drew)
            if victims and self.chance.random() < P_PREEMPT:
                self.batcher.halt(Halt(self.chance.choice(victims), "preempted"))
            if self.running:
                self.step()
            if len(self.batchers) <= kills and self.chance.random() < P_DIE:
                self.die()
        for ctx in range(len(self.jobs)):
            self.batcher.drop(ctx)
        return self.records

    def die(self) -> None:
        """Drop all of the core but its files, damage some of these, and boot another."""
        self.batcher.prefix_cache.tiers.writer.shutdown(cancel_futures=True)
        for slot in range(SLOTS):
            self.engine.clear(slot)
        self.waiting |= self.running
        self.running.clear()
        for path in sorted(self.disk.glob("*/*")) if self.disk else []:
            if self.chance.random() < P_DAMAGE:
                damage(path, self.chance)
        self.boot()

    def dispatch(self, ctx: int) -> None:
        self.waiting.remove(ctx)
        self.running.add(ctx)
        self.drew.discard(ctx)
        history, decoding = self.jobs[ctx]
        drawn = [token for token, _ in self.records[ctx]]
        digest = self.records[ctx][-1][1] if drawn else b""
        segments = [*history, (DECODED, drawn)] if drawn else history
        if drawn and history[-1][0] == DECODED:
            segments = [*history[:-1], (DECODED, [*history[-1][1], *drawn])]
        self.batcher.run(Run(ctx, 0, segments, len(drawn), decoding, digest))

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


def damage(path: Path, chance: random.Random) -> None:
    """Cut a file short, or flip a bit of it."""
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    if chance.random() < 0.5:
        del data[at:]
    else:
        data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def run_solo(
    progress: Progress, engine: LlamaEngine, certified: int, jobs: list[Job]
) -> list[Record]:  # fmt: skip
    solo = []
    for number, job in enumerate(jobs):
        progress(f"solo run {number + 1} of {len(jobs)}")
        solo.append(Schedule(engine, certified, 0, [job], random.Random()).run_solo())
    return solo


COUNTERS = ("steps", "saves", "restores", "replayed", "shared", "written", "read", "bad_snapshots")


def scheduled(
    progress: Progress, engine: LlamaEngine, certified: int, jobs: list[Job], solo: list[Record],
    steps: int, seed: int, room: float,
) -> dict[str, int]:  # fmt: skip
    """Run random schedules of the four kinds in turn, until `steps` are done. Return their
    totals."""
    totals = dict.fromkeys(("schedules", "kills", "compared", "differing", *COUNTERS), 0)
    token_bytes = engine.cache_bytes // (engine.cells * engine.streams)
    longest = [sum(len(t) for _, t in job.history) + job.decoding.max_tokens for job in jobs]
    tight = int(room * sum(longest)) * token_bytes
    while totals["steps"] < steps or totals["schedules"] < 4:
        progress(f"{totals['steps']} of {steps} random steps, {totals['differing']} differ")
        kind = totals["schedules"] % 4
        ram = (ROOMY_BYTES, tight, tight // 4, 0)[kind]
        chance = random.Random(f"{seed} {totals['schedules']}")
        with tempfile.TemporaryDirectory(prefix="aios-") as folder:
            disk = Path(folder) if kind > 1 else None
            schedule = Schedule(engine, certified, ram, jobs, chance, disk)
            records = schedule.random(at_any_time=kind == 0, kills=MAX_KILLS if kind == 3 else 0)
            problems = schedule.batcher.prefix_cache.check()
        if problems:
            raise RuntimeError("; ".join(problems))
        totals["schedules"] += 1
        totals["kills"] += len(schedule.batchers) - 1
        for mine, theirs in zip(records, solo, strict=True):
            totals["compared"] += len(theirs)
            totals["differing"] += sum(a != b for a, b in zip_longest(mine, theirs))
        for counter in COUNTERS:
            totals[counter] += sum(getattr(b.counters(), counter) for b in schedule.batchers)
    return totals


def exact_cost(progress: Progress, engine: LlamaEngine, certified: int, count: int) -> float:
    """Return the time of decoding on all slots within the certified limit, over the time without a
    limit."""
    progress("what exactness costs")
    tokens = engine.tokenize(text(), start=True)[:32]
    decoding = Decoding(max_tokens=count, ignore_eos=True)
    seconds: dict[int, list[float]] = {certified: [], 0: []}
    for _ in range(3):
        for limit, times in seconds.items():
            jobs = [Job([(PREFILLED, tokens)], decoding)] * SLOTS
            schedule = Schedule(engine, limit, ROOMY_BYTES, jobs, random.Random())
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
    """Run the same contexts all at once by llm.generate: preempted by quantum, swapped to disk,
    under a kernel and a core that are killed. A result that is not the solo run's counts in
    whole."""
    progress("through system calls")
    chance = random.Random(len(jobs))
    totals = {"compared": 0, "differing": 0, "switches": 0, "kernel_kills": 0, "core_kills": 0}
    with (
        system(
            progress, slots=SLOTS, ctx=WINDOW, policy="rr", quantum=8, threads=threads(),
            snapshot_bytes=16 << 20,
        ) as home,
        connect(home, "bench") as aios,
    ):  # fmt: skip
        calls = [
            aios.generate(tokens, **msgspec.structs.asdict(decoding))
            for ((_, tokens),), decoding in jobs
        ]
        for call in calls:
            for _ in call.pieces():
                if chance.random() < P_KILL:
                    which = "core" if chance.random() < 0.25 else "kernel"
                    totals[f"{which}_kills"] += kill(aios, which)
        results = [call.result() for call in calls]
    for result, record in zip(results, solo, strict=True):
        same = result.tokens == [token for token, _ in record]
        same = same and result.digest == record[-1][1].hex()
        totals["compared"] += len(record)
        totals["differing"] += 0 if same else len(record)
        totals["switches"] += result.timings.switches
    return totals


def kill(aios: Aios, which: str) -> int:
    """Kill the core or the kernel. Return how many were killed: none, while init has not replaced
    the one before."""
    module = f"aios.kernel{'.core' if which == 'core' else ''}"
    killed = 0
    for child in init_of(aios.status()).children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if child.cmdline()[2:3] == [module]:
                child.kill()
                killed += 1
    return killed
