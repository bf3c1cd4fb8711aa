"""The effects of attacks: figures with a bound each; `missed` names those that are above theirs.

    pids_taken            connections of processes that had ended, on which the kernel took a hello,
                          of `pids_tried`; `pids_reused` of these had their pid taken by another
    pids_refused          how often that other was not welcome on a connection of its own
    pattern_growth        nanoseconds a letter, with a pattern of 16 wildcards: the most of 1, 4, 16
                          and 64 KiB over those of 1 KiB
    KIND_grown_mb         MiB that the kernel's own memory grows by while agents flood it, one after
                          the other as often as it ends them, and read nothing; KIND_rss_mb is all
                          that is resident, with the pages of the store's file that are mapped
    KIND_unanswered       1: another agent gets no answer afterwards
    queue_cpu_ratio       the kernel's processor time a token with thousands of generations queued,
                          over that with 8
    ttft_ratio            the time to the first token of a conversation's turn beside 64 calls of
                          another agent, for a token each, over that alone
    deeds_lost            1: the audit log lacks what an agent did before another, which may do
                          nothing, tried all that there is
    audit_hour_of_bound   what an hour of that adds to the log, by the second half of the run, over
                          the least that a log can be told to keep

`peer` is the same without an attack, where there is such a thing. `ratio` is the share of bounds
that are missed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from aios.agents import Aios, connect
from aios.agents.sdk.connection import Pending
from aios.kernel.audit.read import Filter, entries, last
from aios.kernel.audit.segment import HASH_BYTES, LENGTH
from aios.kernel.lib.patterns import MAX_WILDCARDS, matches
from aios.syscalls.errors import TimedOut

from .common import Progress, Target, system, text, threads, timed
from .flood import KNOWN, OTHERS
from .reuse import take_over

TARGET = Target(0.0)
SECONDS, PROCESSES, QUEUED, TURNS, ROUNDS = 60.0, 40_000, 4000, 30, 50
SLOTS = 4
MAX_CALLS = 1000  # that one process has waiting, of 1,024 that it may have
FEW = 8  # generations, that many are compared with
CPU_WINDOW_S = 20.0  # over which the kernel's processor time is measured
ANSWER_TIMEOUT_S = 60.0  # of another agent
POLL_S = 0.1  # between two looks at the kernel's memory
MIN_AUDIT_BYTES = 8 << 20  # the smallest that a log can be bounded to
TEXT_CHARS = tuple(1024 << shift for shift in (0, 2, 4, 6))
ANSWER_TOKENS = 16
FLOOD = str(Path(__file__).with_name("flood.py"))
FLOODS = (*KNOWN, *OTHERS)
LAST_LINE_BYTES = 100
HOUR_S = 3600.0
MB = 1 << 20
Manifest = dict[str, list[str]]
ALL: Manifest = {"allow": ["*"]}
NOTHING: Manifest = {"allow": []}
Figures = dict[str, Any]


def run(
    progress: Progress, seconds: float = SECONDS, processes: int = PROCESSES, queued: int = QUEUED,
    window: float = CPU_WINDOW_S, turns: int = TURNS, floods: tuple[str, ...] = FLOODS,
) -> dict[str, Any]:  # fmt: skip
    ours, peer = pattern_figures()
    with system(progress, slots=1, ctx=256) as home:
        ours |= take_over(progress, home, processes)
    for kind in floods:
        ours |= flooded(progress, kind, seconds)
    for measured in (queue_figures(progress, queued, window), turn_figures(progress, turns)):
        ours |= measured[0]
        peer |= measured[1]
    ours |= audit_figures(progress, seconds)
    most = bounds(floods)
    missed = [name for name in most if ours[name] > most[name]]
    return {
        "ratio": len(missed) / len(most), "ours": ours,
        "peer": peer, "targets": most, "missed": missed,
    }  # fmt: skip


def bounds(floods: tuple[str, ...]) -> dict[str, float]:
    return {
        "pids_taken": 0, "pids_refused": 0, "pattern_growth": 2.0,
        **{f"{kind}_grown_mb": 64.0 for kind in floods},
        **{f"{kind}_unanswered": 0 for kind in floods},
        "queue_cpu_ratio": 2.0, "ttft_ratio": 3.0, "deeds_lost": 0, "audit_hour_of_bound": 1.0,
    }  # fmt: skip


# --- patterns ------------------------------------------------------------------------------------


def pattern_figures() -> tuple[Figures, Figures]:
    pattern = "*a" * (MAX_WILDCARDS - 1) + "*b"
    each = [letter_ns(pattern, "a" * size) for size in TEXT_CHARS]
    return {"pattern_growth": max(each) / each[0], "pattern_ns": max(each)}, {"pattern_ns": each[0]}


def letter_ns(pattern: str, letters: str) -> float:
    """Return the nanoseconds a letter in the quickest round, which other load disturbs least."""
    return min(timed(lambda: matches(pattern, letters), ROUNDS)) * 1e9 / len(letters)


# --- floods --------------------------------------------------------------------------------------


def start(aios: Aios, kind: str, seconds: float, manifest: Manifest) -> int:
    task = {"kind": kind, "seconds": seconds}
    reach = {"read": [str(folder) for folder in (files("aios.bench"), files("aios.kernel"))]}
    return aios.spawn(FLOOD, task, name=kind, manifest=manifest, reach=reach)


def flooded(progress: Progress, kind: str, seconds: float) -> Figures:
    with system(progress, slots=1, ctx=256) as home, connect(home, "bench") as aios:
        kernel = psutil.Process(aios.status().os_pid)
        answers(aios)  # what it takes to serve an agent is no growth
        sizes = [kernel.memory_info()]
        progress(f"{seconds:g} s of {kind}")
        sent = flood(aios, kind, seconds, ALL, lambda: sizes.append(kernel.memory_info()))
        answered = answers(aios)
    own = [size.rss - size.shared for size in sizes]
    return {
        f"{kind}_grown_mb": (max(own) - own[0]) / MB,
        f"{kind}_rss_mb": max(size.rss for size in sizes) / MB,
        f"{kind}_agents": len(sent), f"{kind}_sent": sum(sent),
        f"{kind}_unanswered": int(not answered),
    }  # fmt: skip


def answers(aios: Aios) -> bool:
    """Tell whether another agent is told who it is."""
    try:
        return aios.wait(start(aios, "who", 0.0, ALL), ANSWER_TIMEOUT_S).code == 0
    except TimedOut:
        return False


def flood(
    aios: Aios, kind: str, seconds: float, manifest: Manifest, look: Callable[[], object]
) -> list[int]:
    """Run one agent after the other, as often as the kernel ends them. Return how many frames each
    has sent."""
    sent = []
    limit = time.monotonic() + seconds
    while (left := limit - time.monotonic()) > 0:
        pid = start(aios, kind, left, manifest)
        end = aios.start("proc.wait", pid=pid)
        while not end.ended:
            look()
            with contextlib.suppress(TimedOut):
                end.wait(POLL_S)
        told = aios.log(pid, -LAST_LINE_BYTES).data.split()
        if end.body["code"] == 1:
            raise RuntimeError(f"{kind}: {b' '.join(told).decode()}")
        sent.append(int(told[-1]) if told else 0)
    return sent


# --- the model -----------------------------------------------------------------------------------


def queue_figures(progress: Progress, queued: int, window: float) -> tuple[Figures, Figures]:
    with system(progress, slots=SLOTS, ctx=1024, threads=threads()) as home:
        many, few = (token_cpu_us(progress, home, count, window) for count in (queued, FEW))
    ours = {"queue_cpu_us": many, "queue_cpu_ratio": many / few}
    return ours, {"queue_cpu_us": few}


def token_cpu_us(progress: Progress, home: Path, count: int, window: float) -> float:
    """Return the microseconds of the kernel's processor time for each token, with `count`
    generations queued."""
    progress(f"{count} generations queued")
    options = {"text": "Once upon a time", "max_tokens": 900, "ignore_eos": True}
    with ExitStack() as stack:
        aios = stack.enter_context(connect(home, "bench"))
        kernel = aios.status().os_pid
        callers = [stack.enter_context(connect(home, "queue")) for _ in range(0, count, MAX_CALLS)]
        calls = [callers[at // MAX_CALLS].start("llm.generate", **options) for at in range(count)]
        while aios.status().ready < count - 2 * SLOTS:  # of the others some may be changing places
            time.sleep(POLL_S)
        before, seconds = received(callers, calls, 0.0), cpu_seconds(kernel)
        while not (tokens := received(callers, calls, window) - before):
            progress(f"{count} generations queued; no token yet")  # the machine is that busy
        seconds = cpu_seconds(kernel) - seconds
    return seconds / tokens * 1e6


def cpu_seconds(os_pid: int) -> float:
    """Return the processor time of a process, by its clock: clock_getcpuclockid(3)."""
    return time.clock_gettime((~os_pid << 3) | 2)


def received(callers: list[Aios], calls: list[Pending], seconds: float) -> int:
    """Wait `seconds`, and return how many tokens have come."""
    time.sleep(seconds)
    for aios in callers:
        with contextlib.suppress(TimedOut):
            aios.connection.pump(time.monotonic())
    return sum(len(piece["tokens"]) for call in calls for piece in call.pieces)


def turn_figures(progress: Progress, turns: int) -> tuple[Figures, Figures]:
    with (
        system(progress, slots=SLOTS, ctx=2048, threads=threads()) as home,
        connect(home, "bench") as aios,
    ):
        progress(f"{turns} turns alone")
        alone = ttft(aios, turns)
        pid = start(aios, "one_token", math.inf, ALL)
        progress(f"{turns} turns beside calls for a token each")
        beside = ttft(aios, turns)
        aios.kill(pid, "KILL")
    return {"ttft": beside, "ttft_ratio": beside / alone}, {"ttft": alone}


def ttft(aios: Aios, turns: int) -> float:
    """Return the median seconds to the first token of a turn."""
    words = text().split()
    seconds = []
    with aios.open("You are helpful.") as context:
        for number in range(turns):
            said = " ".join(words[number * 10 :][:10])
            begin = time.perf_counter()
            answer = context.generate(said, max_tokens=ANSWER_TOKENS, ignore_eos=True)
            pieces = answer.pieces()
            next(pieces)
            seconds.append(time.perf_counter() - begin)
            answer.result()
    return median(seconds)


# --- the audit log -------------------------------------------------------------------------------


def audit_figures(progress: Progress, seconds: float) -> Figures:
    with (
        system(progress, slots=1, ctx=256, audit_bytes=MIN_AUDIT_BYTES) as home,
        connect(home, "bench") as aios,
    ):
        aios.wait(start(aios, "deed", 0.0, ALL))
        half = (time.time() + seconds / 2) * 1e9
        progress(f"{seconds:g} s of refused calls")
        sent = flood(aios, "refused", seconds, NOTHING, lambda: None)
        own = aios.welcome.pid
        rows = [
            (record.wall < half, LENGTH.size + len(body) + HASH_BYTES)
            for record, body, _ in entries(home / "audit")
            if record.pid != own
        ]
        found = last(home / "audit", 1, Filter(agent="/deed", call="mem.put"))
    begin, rest = (sum(size for early, size in rows if early is which) for which in (True, False))
    hour = begin + rest * (HOUR_S / (seconds / 2) - 1)
    return {
        "deeds_lost": int(not found), "audit_refused": sum(sent), "audit_records": len(rows),
        "audit_mb_an_hour": hour / MB, "audit_hour_of_bound": hour / MIN_AUDIT_BYTES,
    }  # fmt: skip
