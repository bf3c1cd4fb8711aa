"""Memory: durable puts acknowledged a second, and how long one takes, beside LMDB itself.

64 writers are 64 connections spread over 4 processes: as many Python processes as writers would
measure how 2 processors share them. Each keeps several calls on their way. A put is 100 bytes. The
peer is LMDB in this process, in a file extended ahead likewise: with a sync a put, and with one for
as many puts as the kernel's commits had. `ratio` is our puts a second, one a call, over 20,000.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb

from aios.agents import connect
from aios.agents.sdk.connection import Pending
from aios.kernel.lib.encryption import CRC

from .common import Progress, Target, system, timed

TARGET = Target(1.0, at_least=True)
GOAL_PUTS_PER_SECOND = 20_000.0  # durable
PROCESSES, WRITERS, IN_FLIGHT = 4, 64, 16
VALUE = "x" * 97  # 100 bytes, as msgpack
PUTS, LONE = 64_000, 1000
FILE_BYTES = 64 << 20  # of the peer


def run(progress: Progress, puts: int = PUTS, lone: int = LONE) -> dict[str, Any]:
    with system(progress, slots=1, ctx=256) as home, connect(home, "bench") as aios:
        progress("one writer")
        numbers = itertools.count()
        single = sorted(timed(lambda: aios.mem_put({f"k{next(numbers)}": VALUE}), lone))
        rates = {}
        for items in (1, 16):
            progress(f"{WRITERS} writers, {items} items a call")
            before = aios.stats().commits
            rate = together(home, puts, items)
            commits = aios.stats().commits - before
            rates[items] = (rate, puts / max(1, commits))
    progress("LMDB itself")
    group = max(1, round(rates[1][1]))
    ours = {
        "puts_per_second": rates[1][0],
        "puts_a_commit": rates[1][1],
        "puts_per_second_16_a_call": rates[16][0],
        "single_p50": single[len(single) // 2],
        "single_p99": single[len(single) * 99 // 100],
    }
    each, grouped = raw(lone, 1), raw(puts, group)
    peer = {
        "puts_per_second": len(grouped) * group / sum(grouped),
        "puts_a_commit": float(group),
        "puts_per_second_sync_each": len(each) / sum(each),
        "single_p50": sorted(each)[len(each) // 2],
        "single_p99": sorted(each)[len(each) * 99 // 100],
    }
    ours["over_peer_with_same_group"] = ours["puts_per_second"] / peer["puts_per_second"]
    ours["over_peer_with_sync_each"] = ours["puts_per_second"] / peer["puts_per_second_sync_each"]
    ratio = ours["puts_per_second"] / GOAL_PUTS_PER_SECOND
    return {"ratio": ratio, "ours": ours, "peer": peer}


def together(home: Path, puts: int, items: int) -> float:
    """Return the puts a second of all writers, from the start signal to the last
    acknowledgement."""
    spawn = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    processes = []
    for number in range(PROCESSES):
        mine, theirs = spawn.Pipe()
        share = puts // PROCESSES
        args = (home, f"w{number}", WRITERS // PROCESSES, share, items, theirs)
        processes.append(spawn.Process(target=write, args=args, daemon=True))
        processes[-1].start()
        ends.append(mine)
    try:
        for end in ends:
            end.recv()  # connected
        begin = time.perf_counter()
        for end in ends:
            end.send("go")
        for end in ends:
            end.recv()
        return puts / (time.perf_counter() - begin)
    finally:
        for process in processes:
            process.kill()
            process.join()


def write(home: Path, name: str, writers: int, puts: int, items: int, starter: Connection) -> None:
    """Run some of the writers in turns, in a process of their own."""
    connections = [connect(home, f"{name}-{number}") for number in range(writers)]
    flying: list[deque[Pending]] = [deque() for _ in connections]
    starter.send("ready")
    starter.recv()
    for number in range(puts // items):
        calls = flying[number % writers]
        if len(calls) >= IN_FLIGHT:
            calls.popleft().wait()
        batch = {f"k{number * items + i}": VALUE for i in range(items)}
        calls.append(connections[number % writers].start("mem.put", items=batch))
    for calls in flying:
        for call in calls:
            call.wait()
    starter.send("done")
    starter.recv()


def raw(puts: int, group: int) -> list[float]:
    """Return the seconds of each commit of `group` puts by LMDB itself."""
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        env = lmdb.open(folder, map_size=4 * FILE_BYTES, meminit=False)
        _extend(Path(folder) / "data.mdb")
        value = bytes(CRC.size) + VALUE.encode() + b"msg"
        seconds = []
        for at in range(0, puts, group):
            begin = time.perf_counter()
            with env.begin(write=True) as txn:
                for number in range(at, at + group):
                    txn.put(b"%08d%08d" % (number % WRITERS, number), value)
            seconds.append(time.perf_counter() - begin)
        env.close()
        return seconds


def _extend(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(bytes(FILE_BYTES))
        file.flush()
        os.fsync(file.fileno())
