"""How far apart two agents can be that both have work all the time (VTC, OSDI'24, theorem 4.4)."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.kernel.llm.scheduler.fair_share import DECODE, PREFILL
from aios.kernel.llm.scheduler.scheduler import Decision, Preempt, Scheduler
from aios.kernel.llm.scheduler.shares import ShareCounters
from aios.kernel.llm.scheduler.task import Task

CHUNK = 16  # tokens of prompts in a step of the core
Agent = tuple[str, str]

JOB = st.tuples(st.integers(1, 60), st.integers(1, 40))  # tokens of a prompt, and of its answer


class Core:
    """A core that moves each task on by a token, or by a part of its prompt, in each step."""

    def __init__(self, policy: str, quantum: int, slots: int) -> None:
        self.scheduler = Scheduler(policy, quantum, slots)
        self.left: dict[int, list[int]] = {}
        self.had: defaultdict[str, float] = defaultdict(float)
        self.alive: Counter[str] = Counter()
        self.halting: list[int] = []
        self.last = 0

    def add(self, program: str, agent: str, prompt: int, answer: int) -> None:
        self.last += 1
        self.left[self.last] = [prompt, answer]
        task = Task(self.last, agent, program, prompt=prompt, limit=answer)
        self.alive[agent] += 1
        self._note(self.scheduler.add(task, float(self.last)))

    def step(self) -> None:
        """Confirm who has made room, and move all on that run."""
        for task_id in self.halting:
            self.scheduler.halted(task_id, 0.0)
        self.halting.clear()
        self._note(self.scheduler.decide(0.0))
        room = CHUNK
        for task in list(self.scheduler.running.values()):
            left = self.left[task.id]
            fed = min(room, left[0])
            drawn = int(left[0] == 0)
            room -= fed
            left[0] -= fed
            left[1] -= drawn
            self.had[task.agent] += PREFILL * fed + DECODE * drawn
            self.scheduler.served(task.id, 0.0, prefilled=fed, decoded=drawn)
        for task_id in [each for each in self.scheduler.running if self.left[each] == [0, 0]]:
            del self.left[task_id]
            self.alive[self.scheduler.tasks[task_id].agent] -= 1
            self._note(self.scheduler.remove(task_id, 0.0))
        self._note(self.scheduler.decide(0.0))

    def _note(self, decisions: list[Decision]) -> None:
        self.halting += [each.task for each in decisions if isinstance(each, Preempt)]


def bound(quantum: int, slots: int) -> float:
    """Two shares are apart by at most a turn that ends and one that begins, and by what all slots
    have in one step before the scheduler hears of it. Twice: one may lead, and then the other."""
    return 2 * (2 * DECODE * quantum + PREFILL * CHUNK + DECODE * slots)


@given(
    quantum=st.integers(1, 12), slots=st.integers(1, 6), contexts=st.integers(1, 20),
    jobs=st.lists(JOB, min_size=1, max_size=20), guests=st.lists(st.integers(0, 140), max_size=4),
)  # fmt: skip
def test_two_that_always_have_work_have_the_same(
    quantum: int, slots: int, contexts: int, jobs: list[tuple[int, int]], guests: list[int]
) -> None:
    """However many contexts one has, how long its answers are, and who else comes and goes."""
    core = Core("fair", quantum, slots)
    begun = Counter[str]()
    apart = 0.0

    def keep_busy(agent: str, most: int, longer: int) -> None:
        for _ in range(most - core.alive[agent]):
            prompt, answer = jobs[begun[agent] % len(jobs)]
            core.add(agent, agent, prompt, answer * longer)
            begun[agent] += 1

    for number in range(150):
        keep_busy("/greedy", max(contexts, slots + 1), 3)
        keep_busy("/modest", slots + 1, 1)
        for at in guests:
            if at == number:
                core.add(f"/guest{at}", f"/guest{at}", 30, 30)
        core.step()
        apart = max(apart, abs(core.had["/greedy"] - core.had["/modest"]))
    assert apart <= bound(quantum, slots)


@pytest.mark.parametrize("level", ["trees", "agents of a tree"])
def test_one_with_64_contexts_is_one_claim(level: str) -> None:
    core = Core("fair", quantum=8, slots=4)
    program = "/tree" if level == "agents of a tree" else ""
    for _ in range(64):
        core.add(program or "/greedy", "/greedy", 10, 1000)
    for agent in ("/a", "/b", "/c"):
        for _ in range(2):
            core.add(program or agent, agent, 10, 1000)
    for _ in range(800):
        core.step()
    assert max(core.had.values()) - min(core.had.values()) <= bound(8, 4)


def test_without_the_lift_who_was_away_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is one that a broken policy passes."""
    monkeypatch.setattr(ShareCounters, "_lift", lambda _self, _part: None)
    core = Core("fair", quantum=4, slots=1)
    for _ in range(2):
        core.add("/old", "/old", 1, 1000)
    for _ in range(500):
        core.step()
    before = core.had["/old"]
    for _ in range(2):
        core.add("/new", "/new", 1, 1000)
    for _ in range(300):
        core.step()
    assert core.had["/new"] - (core.had["/old"] - before) > bound(4, 1)
