"""The kernel killed at random moments, while agents generate and write: nobody notices."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
from conftest import Boot

from aios.agents import Aios, connect

AGENTS = 8
BODY = """
with aios.open("Be brief.", name=f"story{task}") as context:
    number = 0
    while True:
        answer = context.generate(
            f"Part {number}.", max_tokens=8 + task, temperature=0.8, seed=task, ignore_eos=True,
            digest=True,
        )
        seen = [token for piece in answer.pieces() for token in piece.tokens]
        while True:
            try:
                aios.send("collector", [task, number, seen, answer.tokens, answer.digest])
                break
            except AiosError as error:
                if error.code != "limit":  # its share of the mailbox is full
                    raise
                time.sleep(0.05)
        number += 1
        if answer.usage.context > 350:
            context.rollback("start")
        elif number == 1:
            context.checkpoint("start")
"""


def collect(aios: Aios, path: str, total: int, disturb: Callable[[], bool]) -> dict[int, list[Any]]:
    """Return what AGENTS agents send, in order, until each has sent `total` parts and there is
    nothing more to `disturb`. All mail is read each time: else the mailbox would be full."""
    pids = [aios.spawn(path, task, limits={"queue": None}) for task in range(AGENTS)]
    parts: dict[int, list[Any]] = {task: [] for task in range(AGENTS)}

    def read() -> None:
        while aios.whoami().queue:
            task, *part = aios.recv(timeout=0).body
            parts[task].append(part)

    while disturb() or min(map(len, parts.values())) < total:
        read()
    for pid in pids:
        aios.kill(pid, "KILL")
        aios.wait(pid)
    read()
    for context in aios.contexts():
        assert context.state == "asleep"
    return parts


@pytest.mark.faults
def test_the_kernel_killed_at_random_moments(
    boot: Boot, program: Callable[[str], str], full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(7)
    kills, parts_each = (100, 16) if full else (8, 3)
    path = program(BODY)
    with connect(boot(slots=4, ctx=512).home, "collector") as aios:
        control = collect(aios, path, 4 * parts_each, lambda: False)
    system = boot(slots=4, ctx=512)
    took: list[float] = []

    def kill() -> bool:
        if len(took) == kills:
            return False
        time.sleep(rng.random() * 0.3)  # a random moment is the point here
        begin = time.monotonic()
        os.kill(aios.status().os_pid, signal.SIGKILL)
        before = time.monotonic()
        aios.status()
        took.append(time.monotonic() - before)
        assert before - begin < 60
        return True

    with connect(system.home, "collector") as aios:
        found = collect(aios, path, parts_each, kill)
        assert len(took) == kills
        assert aios.check() == []
        assert aios.status().core_restarts == 0
    for task, parts in found.items():
        assert [number for number, *_ in parts] == list(range(len(parts)))  # none lost or doubled
        for mine, theirs in zip(parts, control[task], strict=False):
            assert mine == theirs
            assert mine[1] == mine[2]
    with capsys.disabled():
        tokens = sum(len(part[2]) for parts in found.values() for part in parts)
        print(
            f"\n{kills} kills, {tokens} tokens: restart to the first served call "
            f"median {median(took):.3f} s, longest {max(took):.3f} s"
        )
