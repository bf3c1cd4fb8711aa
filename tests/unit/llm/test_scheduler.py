"""The scheduler alone: its two policies, and the time that tasks wait."""

from __future__ import annotations

import pytest

from aios.kernel.llm.scheduler import POLICIES, Dispatch, Preempt, Queue, Scheduler
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
