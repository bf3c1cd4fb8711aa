"""Storage while many change it at once, and the kernel is killed: compare-and-swap, batches,
uploads, memory and watches, over one store."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import Boot, eventually

from aios.agents import Aios, connect
from aios.syscalls.errors import Conflict

pytestmark = pytest.mark.faults

SWAPPERS, BATCHERS = 4, 3
COUNTERS = 2
LONG = 300_000  # bytes, which takes an upload


class Worker(threading.Thread):
    """Calls `step` with its connection, again and again, until it is told to stop."""

    def __init__(self, home: Path, name: str, step: Callable[[Aios, int], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.home, self.step = home, step
        self.steps = 0
        self.going = True
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with connect(self.home, self.name) as aios:
                while self.going:
                    self.step(aios, self.steps)
                    self.steps += 1
        except BaseException as error:  # noqa: BLE001 (told by the test, whose thread this is not)
            self.error = error


def swapper(done: Counter[str]) -> Callable[[Aios, int], None]:
    """Adds one to a counter, if nobody was quicker."""

    def step(aios: Aios, number: int) -> None:
        path = f"counter/{number % COUNTERS}"
        now = aios.sto_read(path)
        try:
            value = b"%d" % (int(now.data) + 1)
            aios.sto_put(path, value, if_version=now.info.version)
        except Conflict:
            return
        done[path] += 1

    return step


def batcher(name: str) -> Callable[[Aios, int], None]:
    """Two objects and an upload, all of one number; and a pair in memory."""

    def step(aios: Aios, number: int) -> None:
        text = b"%d " % number
        changes: list[dict[str, Any]] = [
            {"path": f"{name}/{half}", "data": text * 100} for half in "ab"
        ]
        aios.sto_batch(changes)
        aios.mem_put(dict.fromkeys("ab", number), principal=f"/{name}")
        if number % 10 == 0:
            aios.sto_put(f"{name}/long", text * (LONG // len(text)))

    return step


def watcher(heard: list[tuple[str, int]]) -> Callable[[Aios, int], None]:
    def step(aios: Aios, _: int) -> None:
        with closing(aios.sto_watch("counter")) as watch:  # type: ignore[type-var]
            for info in watch:
                heard.append((info.path, info.version))
                if info.path == "counter/end":
                    return

    return step


def test_kernels_killed_while_many_change_storage(boot: Boot, full: bool) -> None:
    rng = random.Random(13)
    system = boot(slots=1, ctx=256)
    done: Counter[str] = Counter()
    heard: list[tuple[str, int]] = []
    names = [f"batcher{number}" for number in range(BATCHERS)]
    with connect(system.home, "test") as aios:
        for number in range(COUNTERS):
            aios.sto_put(f"counter/{number}", b"0")
        workers = [Worker(system.home, f"swapper{n}", swapper(done)) for n in range(SWAPPERS)]
        workers += [Worker(system.home, name, batcher(name)) for name in names]
        watching = Worker(system.home, "watcher", watcher(heard))
        for worker in [*workers, watching]:
            worker.start()
        for _ in range(40 if full else 6):
            before = [worker.steps for worker in workers]
            eventually(
                lambda before=before: all(  # type: ignore[misc]
                    w.steps > at or w.error for w, at in zip(workers, before, strict=True)
                ),
                60,
            )
            time.sleep(rng.random() * 0.1)  # a random moment is the point here
            os.kill(aios.status().os_pid, signal.SIGKILL)
            for name in names:
                pair = aios.mem_get(["a", "b"], principal=f"/{name}")
                assert pair["a"] == pair["b"]
        for worker in workers:
            worker.going = False
        for worker in workers:
            worker.join(60)
            assert (worker.is_alive(), worker.error) == (False, None)
        watching.going = False
        eventually(lambda: ended(aios, watching))
        assert watching.error is None
        for number in range(COUNTERS):
            path = f"counter/{number}"
            assert aios.sto_get(path) == b"%d" % done[path]
            assert [info.version for info in aios.sto_history(path)] == [
                *range(done[path] + 1, 0, -1)
            ]
            versions = [version for at, version in heard if at == path]
            assert versions == sorted(set(versions))  # each once, in their order
            assert versions
        for name in names:
            a, b = (aios.sto_read(f"{name}/{half}") for half in "ab")
            assert (a.data, a.info.version) == (b.data, b.info.version)
            assert len(set(aios.sto_get(f"{name}/long").split())) == 1
        assert aios.sto_verify().wait()["problems"] == []
        assert aios.check() == []


def ended(aios: Aios, watching: Worker) -> bool:
    """The watch hears of a last change, if it has not begun anew just then."""
    aios.sto_put("counter/end", b"")
    return not watching.is_alive()
