"""Agents killed at random moments, whatever they are at: nothing of them stays."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import psutil
import pytest
from conftest import Boot, eventually, left_of

from aios.agents import connect

BODIES = {
    "generates": "while True:\n    aios.generate('Tell a story.', max_tokens=50).result()",
    "converses": "while True:\n    with aios.open('Be brief.') as context:\n"
    "        context.generate('More.', max_tokens=8).result()",
    "receives": "while True:\n    try:\n        aios.recv(timeout=0.01)\n"
    "    except AiosError:\n        pass",
    "spawns": "while True:\n    try:\n        aios.spawn(task)\n"
    "    except AiosError:\n        pass",
    "waits": "while True:\n    aios.wait(aios.spawn(task))",
    "follows": "for event in aios.events():\n    pass",
    "stops": "os.kill(os.getpid(), signal.SIGSTOP)",
    "prints": "while True:\n    print('x' * 100)\n    time.sleep(0.001)",
}


@pytest.mark.faults
def test_agents_killed_at_random_moments(
    boot: Boot, program: Callable[[str], str], full: bool
) -> None:
    rng = random.Random(50)
    system = boot(slots=3, ctx=256, grace=0.2)
    child = program("aios.recv(timeout=0.05)")
    paths = {name: program(body) for name, body in BODIES.items()}
    with connect(system.home) as aios:
        status = aios.status()
        kernel = psutil.Process(status.os_pid)
        before, parts = kernel.num_fds(), left_of(system.home)
        for _ in range(10 if full else 2):
            names = rng.sample(sorted(paths), 5)
            limits = {"children": 5}
            pids = [aios.spawn(paths[name], child, name=name, limits=limits) for name in names]
            for pid in pids:
                time.sleep(rng.random() * 0.2)  # a random moment in its life is the point here
                assert aios.status().boot == status.boot
                row = next(row for row in aios.ps(all=True) if row.pid == pid)
                assert row.state != "zombie", (row, aios.log(pid).data)
                os.kill(row.os_pid, signal.SIGKILL)
            assert [aios.wait(pid, timeout=1).code for pid in pids] == [137] * 5
            assert aios.check() == []
        eventually(lambda: not aios.ps())
        after = aios.status()
        assert (after.contexts, after.running, after.ready) == (0, 0, 0)
        assert (after.boot, after.core_restarts) == (status.boot, 0)
        assert aios.check() == []
        assert left_of(system.home) == parts
        eventually(lambda: kernel.num_fds() <= before + 1)
        assert aios.generate("Hi", max_tokens=2).result().tokens
