"""Many agents call tools at once, of which some fail, hang and crash: each call has one end, the
right one, nothing is left behind, and whoever calls what works does not feel it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import psutil
from conftest import Boot, eventually
from places import SUPPORT

from aios.agents import connect

STORM = str(SUPPORT / "storm.py")
UNLOCKED = [0, 1, 2, 6]  # whoever calls another may wait until what hangs in it is ended
MAY = {"allow": ["tool"]}
CALLER = """
import random, time
rng = random.Random(task["seed"])
ends = {"well": None, "fail": "tool.failed", "hang": "tool.timeout", "crash": "tool.crashed"}
wrong, taken, counts = [], [], {}
until = time.monotonic() + task["seconds"]
number = 0
while time.monotonic() < until:
    number += 1
    bad = rng.random() < task["bad"]
    how = rng.choice(["fail", "hang", "crash"]) if bad else "well"
    which = rng.choice(task["tools"])
    begin = time.monotonic()
    try:
        limit = 1.0 if how == "hang" else None
        call = aios.call_tool(f"storm.t{which}", {"how": how, "number": number}, timeout=limit)
        value, code = call.result().value, None
    except AiosError as error:
        value, code = None, error.code
    taken.append(time.monotonic() - begin)
    wanted = [ends[how]]
    if which == 3 and how in ("hang", "crash"):
        wanted.append("tool.unknown")  # it has an effect
    if code not in wanted or (code is None and value != number + 1):
        wrong.append([which, how, code, value])
    counts[how] = counts.get(how, 0) + 1
taken.sort()
return {"wrong": wrong[:5], "counts": counts, "p99": taken[int(len(taken) * 0.99)]}
"""


def test_what_fails_hangs_and_crashes_costs_only_itself(
    boot: Boot, program: Callable[[str], str], full: bool
) -> None:
    agents, seconds = (64, 60.0) if full else (8, 3.0)
    system = boot(slots=1, ctx=256, tools={"storm": {"program": STORM}})
    caller = program(CALLER)
    with connect(system.home, "test") as aios:
        init = psutil.Process(system.process.pid)

        def storm(bad: float) -> tuple[dict[str, int], list[float]]:
            """The counts of the callers; the p99 of two that only do what works."""
            tasks = [
                {"seed": seed, "seconds": seconds, "bad": 0, "tools": UNLOCKED}
                if seed < 2
                else {"seed": seed, "seconds": seconds, "bad": bad, "tools": list(range(8))}
                for seed in range(agents)
            ]
            pids = [aios.spawn(caller, task, manifest=MAY) for task in tasks]
            counts: dict[str, int] = {}
            p99 = []
            for pid, task in zip(pids, tasks, strict=True):
                result = aios.wait(pid, timeout=seconds * 3 + 60).result
                assert result["wrong"] == []
                for how, count in result["counts"].items():
                    counts[how] = counts.get(how, 0) + count
                if task["tools"] == UNLOCKED:
                    p99.append(result["p99"])
            return counts, p99

        before = len(init.children(recursive=True))
        calm, calm_p99 = storm(0.0)
        begin = time.monotonic()
        counts, p99 = storm(0.05)
        took = time.monotonic() - begin
        eventually(lambda: len(init.children(recursive=True)) <= before)
        assert aios.check() == []
        assert counts.keys() == {"well", "fail", "hang", "crash"}
        assert calm.keys() == {"well"}
        print(
            f"\n{sum(counts.values())} calls in {took:.0f} s by {agents} agents: {counts}; "
            f"p99 of those that do what works {median(p99) * 1000:.0f} ms, "
            f"with nobody failing {median(calm_p99) * 1000:.0f} ms"
        )
