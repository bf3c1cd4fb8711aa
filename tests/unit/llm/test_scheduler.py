"""The scheduler alone: its two policies, and its promises against a core of its own pace."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aios.kernel.llm.scheduler import POLICIES, Decision, Dispatch, Preempt, Queue, Scheduler
from aios.syscalls.errors import BadInput


def test_fifo_runs_each_task_to_completion_in_order_of_arrival() -> None:
    scheduler = Scheduler("fifo", quantum=1, slots=1)
    assert scheduler.add(7, 0, 0.0) == [Dispatch(7)]
    assert scheduler.add(3, -20, 0.0) == []
    assert scheduler.add(5, 0, 0.0) == []
    assert scheduler.served(7, 1000, 1.0) == []
    assert scheduler.remove(7, 2.0) == [Dispatch(3)]
    assert scheduler.remove(3, 3.0) == [Dispatch(5)]


def test_round_robin_takes_turns_of_a_quantum() -> None:
    scheduler = Scheduler("rr", quantum=4, slots=1)
    assert scheduler.add(1, 0, 0.0) == [Dispatch(1)]
    assert scheduler.add(2, 0, 0.0) == []
    assert scheduler.served(1, 3, 1.0) == []
    assert scheduler.served(1, 1, 2.0) == [Preempt(1), Dispatch(2)]
    assert scheduler.served(2, 9, 3.0) == []  # nobody is ready: task 1 is still halting
    assert scheduler.halted(1, 4.0) == [Preempt(2), Dispatch(1)]
    assert scheduler.halted(2, 5.0) == []
    assert [scheduler.tasks[i].switches for i in (1, 2)] == [1, 1]


def test_a_turn_is_worth_what_was_computed_again_for_it() -> None:
    scheduler = Scheduler("rr", 4, slots=1)
    scheduler.add(1, 0, 0.0)
    scheduler.add(2, 0, 0.0)
    assert scheduler.served(1, 0, 1.0, again=64) == []
    assert scheduler.served(1, 0, 1.0, again=36) == []
    assert scheduler.served(1, 99, 2.0) == []
    assert scheduler.served(1, 1, 3.0) == [Preempt(1), Dispatch(2)]
    scheduler.halted(1, 4.0)
    assert scheduler.served(2, 4, 5.0) == [Preempt(2), Dispatch(1)]
    assert scheduler.served(1, 4, 6.0) == []  # nobody else is ready yet
    assert scheduler.halted(2, 7.0) == [Preempt(1), Dispatch(2)]  # that was of another turn


def test_all_who_wait_have_a_turn_before_anyone_has_another() -> None:
    scheduler = Scheduler("rr", quantum=1, slots=1)
    turns = [d.task for task in (1, 2, 3) for d in scheduler.add(task, 0, 0.0)]
    for _ in range(6):
        before = turns[-1]
        turns += [d.task for d in scheduler.served(before, 1, 0.0) if isinstance(d, Dispatch)]
        scheduler.halted(before, 0.0)
    assert turns == [1, 2, 3, 1, 2, 3, 1]


def test_an_owner_has_one_turn_a_round_however_many_wait() -> None:
    scheduler = Scheduler("rr", quantum=1, slots=1)
    for task in range(64):
        scheduler.add(task, 0, 0.0, owner="/greedy")
    for task in (70, 71):
        scheduler.add(task, 0, 0.0, owner="/other")
    turns = [0]
    for _ in range(6):  # each ends with its turn
        turns += [decision.task for decision in scheduler.remove(turns[-1], 0.0)]
    assert turns == [0, 1, 70, 2, 71, 3, 4]
    scheduler.add(72, 0, 0.0, owner="/other")  # what it did not use, it has not saved
    turns += [decision.task for decision in scheduler.remove(4, 0.0)]
    assert turns[-1] == 5
    for task in (*range(5, 64), 72):
        scheduler.remove(task, 0.0)
    assert scheduler.owners == {}


def test_round_robin_preempts_nobody_while_nobody_waits() -> None:
    scheduler = Scheduler("rr", quantum=4, slots=2)
    scheduler.add(1, 0, 0.0)
    scheduler.add(2, 0, 0.0)
    assert scheduler.served(1, 100, 1.0) == []
    assert scheduler.add(3, 0, 2.0) == [Preempt(1), Dispatch(3)]


def test_only_as_many_are_preempted_as_wait() -> None:
    scheduler = Scheduler("rr", quantum=1, slots=3)
    for task in (1, 2, 3):
        scheduler.add(task, 0, 0.0)
        scheduler.served(task, 9, 0.0)
    assert scheduler.add(4, 0, 1.0) == [Preempt(1), Dispatch(4)]


class Counted(float):
    """A place in the queue that counts how often it is compared with another."""

    count = 0

    def __eq__(self, other: object) -> bool:
        Counted.count += 1
        return float.__eq__(self, other)

    def __lt__(self, other: float) -> bool:
        Counted.count += 1
        return float.__lt__(self, other)

    __hash__ = float.__hash__


@pytest.mark.parametrize("policy", ["fifo", "rr"])
def test_a_token_costs_the_same_however_many_wait(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = POLICIES[policy]().order

    def cost(waiting: int) -> int:
        scheduler = Scheduler(policy, quantum=2, slots=4)
        monkeypatch.setattr(scheduler.policy, "order", lambda task: Counted(order(task)))
        for task in range(waiting):
            scheduler.add(task, 0, 0.0)
        Counted.count = 0
        for token in range(200):
            for task in list(scheduler.running):
                for decision in scheduler.served(task, 1, float(token)):
                    if isinstance(decision, Preempt):
                        scheduler.halted(decision.task, float(token))
                    scheduler.upcoming()
        return Counted.count

    assert cost(4000) <= 2 * cost(100) + 400


def test_what_leaves_the_queue_is_forgotten() -> None:
    queue = Queue()
    queue.put(0, 0.0)
    for task in range(1, 5000):
        queue.put(task, float(task))
        queue.drop(task)
    assert queue.first(9) == [0]
    assert len(queue._heap) < 200


@pytest.mark.parametrize(("nice", "turn"), [(-20, 867.4), (-4, 24.4), (0, 10), (4, 4.1), (19, 1)])
def test_nice_changes_the_quantum_by_a_quarter_a_step(nice: int, turn: float) -> None:
    scheduler = Scheduler("rr", quantum=10, slots=1)
    scheduler.add(1, nice, 0.0)
    scheduler.add(2, 0, 0.0)
    used = 0
    while not scheduler.served(1, 1, 0.0):
        used += 1
    assert used < turn <= used + 1


def test_an_unknown_policy_changes_nothing() -> None:
    scheduler = Scheduler("rr", quantum=4, slots=1)
    with pytest.raises(BadInput, match="one of fifo, rr"):
        scheduler.set_policy("lottery", 8, 0.0)
    assert (scheduler.policy_name, scheduler.quantum) == ("rr", 4)


def test_time_suspended_is_not_waiting() -> None:
    scheduler = Scheduler("fifo", quantum=1, slots=1)
    scheduler.add(1, 0, 0.0)
    scheduler.add(2, 0, 0.0)
    scheduler.suspend([2], True, 3.0)
    scheduler.suspend([2], False, 10.0)
    assert scheduler.remove(1, 11.0) == [Dispatch(2)]
    assert scheduler.tasks[2].waiting == 4.0


def test_the_waiting_time_of_a_task_that_is_removed_is_final() -> None:
    scheduler = Scheduler("fifo", quantum=1, slots=0)
    scheduler.add(1, 0, 2.0)
    task = scheduler.tasks[1]
    scheduler.remove(1, 9.0)
    assert task.waiting == 7.0


def test_what_ran_when_the_core_died_runs_first_on_the_next() -> None:
    scheduler = Scheduler("rr", quantum=4, slots=2)
    for task in (1, 2, 3):
        scheduler.add(task, 0, 0.0)
    assert scheduler.set_slots(0, 1.0) == []
    assert scheduler.set_slots(2, 2.0) == [Dispatch(1), Dispatch(2)]


def test_a_late_confirmation_from_a_dead_core_changes_nothing() -> None:
    scheduler = Scheduler("rr", quantum=4, slots=1)
    scheduler.add(1, 0, 0.0)
    scheduler.set_slots(0, 1.0)
    assert scheduler.set_slots(1, 2.0) == [Dispatch(1)]
    assert scheduler.halted(1, 3.0) == []
    assert scheduler.tasks[1].state == "running"


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
        assert not needless or self.scheduler.policy_name == "rr"

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
        owner=st.sampled_from(["/a", "/a", "/b"]),
    )  # fmt: skip
    def arrive(self, nice: int, length: int, suspended: bool, owner: str) -> None:
        self.last += 1
        self.states[self.last] = "ready"
        self.left[self.last] = length
        self.waited[self.last] = 0
        if suspended:
            self.suspended.add(self.last)
        self.owners[self.last] = owner
        self.take(self.scheduler.add(self.last, nice, self.now, owner=owner, suspended=suspended))

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
            self.take(self.scheduler.served(task, tokens, self.now))
        elif what == "halted":
            if task in self.states:
                self.states[task] = "ready"
            self.take(self.scheduler.halted(task, self.now))
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
        assert self.scheduler.owners.keys() == {self.owners[task] for task in self.states}

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
