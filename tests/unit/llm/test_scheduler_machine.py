"""The promises of the scheduler, whatever its policy, against a core of its own pace."""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aios.kernel.llm.scheduler.fair_share import FairShare
from aios.kernel.llm.scheduler.policies import POLICIES
from aios.kernel.llm.scheduler.round_robin import RoundRobin
from aios.kernel.llm.scheduler.scheduler import Decision, Dispatch, Preempt, Scheduler
from aios.kernel.llm.scheduler.task import Task

TO_COMPLETION = ("fifo", "sjf")  # policies that preempt nobody
TASKS = st.integers(0, 5)  # the n-th oldest task, modulo how many there are


class SchedulerAndCore(RuleBasedStateMachine):
    """A kernel's scheduler and a model of a core, joined by two queues that lag.

    The core takes commands in order, moves all that run on at its own pace, may finish a task
    before it reads that it should stop, and may die.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.last = 0
        self.scheduler = Scheduler("rr", quantum=4)
        self.states: dict[int, str] = {}  # what the decisions say, not what the scheduler says
        self.suspended: set[int] = set()
        self.waited: Counter[int] = Counter()
        self.owners: dict[int, str] = {}
        self.passed: dict[int, Counter[int]] = {}  # who of its owner had a turn while a task waited
        self.commands: deque[tuple[str, int]] = deque()
        self.reports: deque[tuple[str, int, int]] = deque()
        self.left: dict[int, int] = {}  # tokens until its end
        self.core: set[int] = set()

    # --- the kernel -----------------------------------------------------------------------------

    def take(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            task = decision.task
            if isinstance(decision, Preempt):
                assert self.states[task] == "running"
                self.states[task] = "halting"
                self.commands.append(("preempt", task))
            else:
                assert self.states[task] == "ready"
                assert task not in self.suspended
                self.states[task] = "running"
                self.commands.append(("run", task))
                self.turn_of(task)
        needless = [d for d in decisions if isinstance(d, Preempt) and d.task not in self.suspended]
        assert len(needless) <= sum(isinstance(d, Dispatch) for d in decisions)
        assert not needless or self.scheduler.policy_name not in TO_COMPLETION

    def turn_of(self, task: int) -> None:
        self.passed.pop(task, None)
        for waiting, state in self.states.items():
            waits = state == "ready" and waiting not in self.suspended
            if waits and self.owners[waiting] == self.owners[task]:
                self.passed.setdefault(waiting, Counter())[task] += 1

    def pick(self, n: int) -> int | None:
        tasks = list(self.states)
        return tasks[n % len(tasks)] if tasks else None

    def gone(self, task: int) -> None:
        for of in (self.states, self.left, self.passed):
            of.pop(task, None)
        self.suspended.discard(task)

    @rule(
        nice=st.integers(-20, 19), length=st.integers(1, 40), suspended=st.booleans(),
        owner=st.sampled_from(["/a", "/a/child", "/b"]), prompt=st.integers(0, 40),
    )  # fmt: skip
    def arrive(self, nice: int, length: int, suspended: bool, owner: str, prompt: int) -> None:
        self.last += 1
        self.states[self.last] = "ready"
        self.left[self.last] = length
        self.waited[self.last] = 0
        if suspended:
            self.suspended.add(self.last)
        self.owners[self.last] = owner
        task = Task(self.last, owner, owner[:2], nice, prompt, length, suspended)
        self.take(self.scheduler.add(task, self.now))

    @rule(seconds=st.integers(0, 9))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        for task, state in self.states.items():
            if state == "ready" and task not in self.suspended:
                self.waited[task] += seconds

    @rule(tasks=st.lists(TASKS, max_size=3))
    def suspend(self, tasks: list[int]) -> None:
        chosen = [task for n in tasks if (task := self.pick(n)) is not None]
        self.suspended.update(chosen)
        self.take(self.scheduler.suspend(chosen, True, self.now))

    @rule(tasks=st.lists(TASKS, max_size=3))
    def resume(self, tasks: list[int]) -> None:
        chosen = [task for n in tasks if (task := self.pick(n)) is not None]
        self.suspended.difference_update(chosen)
        self.take(self.scheduler.suspend(chosen, False, self.now))

    @rule(n=TASKS, nice=st.integers(-20, 19))
    def renice(self, n: int, nice: int) -> None:
        task = self.pick(n)
        self.scheduler.renice([0 if task is None else task], nice)

    @rule(name=st.sampled_from(sorted(POLICIES)), quantum=st.integers(1, 6))
    def set_policy(self, name: str, quantum: int) -> None:
        self.passed.clear()
        self.take(self.scheduler.set_policy(name, quantum, self.now))

    @rule(n=TASKS)
    def drop(self, n: int) -> None:
        """The caller is gone: the kernel forgets the task and tells the core to."""
        task = self.pick(n)
        if task is not None:
            self.gone(task)
            self.commands.append(("drop", task))
            self.take(self.scheduler.remove(task, self.now))

    @precondition(lambda self: self.reports)
    @rule()
    def read_report(self) -> None:
        what, task, tokens = self.reports.popleft()
        if what == "served":
            self.scheduler.served(task, self.now, prefilled=tokens // 2, decoded=-(-tokens // 2))
            self.take(self.scheduler.decide(self.now))
        elif what == "halted":
            if task in self.states:
                self.states[task] = "ready"
            self.scheduler.halted(task, self.now)
            self.take(self.scheduler.decide(self.now))
        else:
            self.gone(task)
            self.take(self.scheduler.remove(task, self.now))

    # --- the core -------------------------------------------------------------------------------

    @precondition(lambda self: self.commands)
    @rule()
    def core_reads(self) -> None:
        what, task = self.commands.popleft()
        if what == "run":
            assert task not in self.core
            assert len(self.core) < self.scheduler.slots
            self.core.add(task)
            return
        if what == "preempt" and task in self.core:
            self.reports.append(("halted", task, 0))
        self.core.discard(task)

    @precondition(lambda self: self.core)
    @rule(tokens=st.integers(1, 5))
    def core_steps(self, tokens: int) -> None:
        for task in sorted(self.core):
            self.reports.append(("served", task, tokens))
            left = self.left.get(task)
            if left is None:  # dropped by the kernel, the core has not read it yet
                continue
            self.left[task] = left - tokens
            if left <= tokens:
                self.core.remove(task)
                self.reports.append(("ended", task, 0))

    @rule(rounds=st.integers(1, 20))
    def all_goes_well(self, rounds: int) -> None:
        """Nobody lags for a while."""
        for _ in range(rounds):
            while self.commands:
                self.core_reads()
            if self.core:
                self.core_steps(1)
            while self.reports:
                self.read_report()
            self.round_robin_lets_each_other_task_pass_once()

    @rule()
    def core_dies(self) -> None:
        for of in (self.commands, self.reports, self.core, self.passed):
            of.clear()
        for task in self.states:
            self.states[task] = "ready"
            self.left[task] = max(1, self.left[task])  # its end was not heard of
        self.take(self.scheduler.set_slots(0, self.now))

    @precondition(lambda self: self.scheduler.slots == 0)
    @rule(slots=st.integers(1, 4))
    def core_is_ready(self, slots: int) -> None:
        self.take(self.scheduler.set_slots(slots, self.now))

    # --- what holds at all times ----------------------------------------------------------------

    @invariant()
    def states_are_as_decided(self) -> None:
        assert self.states == {i: task.state for i, task in self.scheduler.tasks.items()}

    @invariant()
    def shares_are_those_of_the_tasks(self) -> None:
        policy = self.scheduler.policy
        if isinstance(policy, RoundRobin | FairShare):
            counters = policy.turns if isinstance(policy, RoundRobin) else policy.tokens
            paths = [(owner[:2], owner) for task in self.states for owner in [self.owners[task]]]
            counted = Counter(part for path in paths for part in ((), path[:1], path))
            assert +counters.tasks == counted
        if isinstance(policy, FairShare):
            running = {task for task, state in self.states.items() if state == "running"}
            assert policy.advances.keys() == running
            assert policy.ahead.keys() == {
                part for path, _ in policy.advances.values() for part in (path[:1], path)
            }

    @invariant()
    def the_queue_has_who_can_be_dispatched(self) -> None:
        ready = self.scheduler.ready
        waits = {task for task, state in self.states.items() if state == "ready"} - self.suspended
        assert ready.paths.keys() == waits
        assert sorted(ready.first(len(waits) + 1)) == sorted(waits)
        assert ready.first(1) == ready.first(9)[:1]

    @invariant()
    def never_more_run_than_there_are_slots(self) -> None:
        assert list(self.states.values()).count("running") <= self.scheduler.slots

    @invariant()
    def no_slot_is_free_while_a_task_could_use_it(self) -> None:
        ready = {task for task, state in self.states.items() if state == "ready"}
        if list(self.states.values()).count("running") < self.scheduler.slots:
            assert ready <= self.suspended

    @invariant()
    def nothing_suspended_runs(self) -> None:
        assert not any(self.states[task] == "running" for task in self.suspended)

    @invariant()
    def waiting_is_what_passed_while_ready(self) -> None:
        for task in self.scheduler.tasks.values():
            assert task.waited(self.now) == self.waited[task.id] >= 0

    @invariant()
    def round_robin_lets_each_other_task_pass_once(self) -> None:
        if self.scheduler.policy_name == "rr":
            for task, others in self.passed.items():
                assert max(others.values()) == 1, f"{task} waits while {others} had turns"

    def teardown(self) -> None:
        """Whatever happened, all tasks end once the core goes on."""
        self.resume(list(range(len(self.states))))
        if self.scheduler.slots == 0:
            self.core_is_ready(1)
        self.all_goes_well(50 + 50 * len(self.states))
        assert self.scheduler.tasks == {} == self.states


TestSchedulerAndCore = SchedulerAndCore.TestCase
