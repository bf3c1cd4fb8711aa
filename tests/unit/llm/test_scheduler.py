"""The scheduler alone: turns, slots, the time that tasks wait, and what a decision costs."""

from __future__ import annotations

import pytest
from scheduling import Stepwise

from aios.kernel.llm.scheduler.policies import POLICIES
from aios.kernel.llm.scheduler.ready_queue import Place
from aios.kernel.llm.scheduler.scheduler import Dispatch, Preempt, Scheduler
from aios.kernel.llm.scheduler.task import Task
from aios.syscalls.errors import BadInput


def test_fifo_runs_each_task_to_completion_in_order_of_arrival() -> None:
    core = Stepwise("fifo", quantum=1)
    assert core.add(7) == [Dispatch(7)]
    assert core.add(3, nice=-20) == []
    assert core.add(5) == []
    assert core.served(7, 1000) == []
    assert core.order() == [3, 5]


def test_round_robin_takes_turns_of_a_quantum() -> None:
    core = Stepwise("rr", quantum=4)
    assert core.add(1) == [Dispatch(1)]
    assert core.add(2) == []
    assert core.served(1, 3) == []
    assert core.served(1, 1) == [Preempt(1), Dispatch(2)]
    assert core.served(2, 9) == []  # nobody is ready: task 1 is still halting
    assert core.halted(1) == [Preempt(2), Dispatch(1)]
    assert core.halted(2) == []
    assert [core.scheduler.tasks[i].switches for i in (1, 2)] == [1, 1]


def test_a_turn_is_worth_what_was_computed_again_for_it() -> None:
    core = Stepwise("rr", quantum=4)
    core.add(1)
    core.add(2)
    assert core.served(1, 0, again=64) == []
    assert core.served(1, 0, again=36) == []
    assert core.served(1, 99) == []
    assert core.served(1, 1) == [Preempt(1), Dispatch(2)]
    core.halted(1)
    assert core.served(2, 4) == [Preempt(2), Dispatch(1)]
    assert core.served(1, 4) == []  # nobody else is ready yet
    assert core.halted(2) == [Preempt(1), Dispatch(2)]  # that was of another turn


def test_all_who_wait_have_a_turn_before_anyone_has_another() -> None:
    core = Stepwise("rr", quantum=1)
    turns = [each.task for task in (1, 2, 3) for each in core.add(task)]
    for _ in range(6):
        before = turns[-1]
        turns += [each.task for each in core.served(before, 1) if isinstance(each, Dispatch)]
        core.halted(before)
    assert turns == [1, 2, 3, 1, 2, 3, 1]


def test_round_robin_preempts_nobody_while_nobody_waits() -> None:
    core = Stepwise("rr", quantum=4, slots=2)
    core.add(1)
    core.add(2)
    assert core.served(1, 100) == []
    assert core.add(3) == [Preempt(1), Dispatch(3)]


def test_only_as_many_are_preempted_as_wait() -> None:
    core = Stepwise("rr", quantum=1, slots=3)
    for task in (1, 2, 3):
        core.add(task)
        core.served(task, 9)
    assert core.add(4) == [Preempt(1), Dispatch(4)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_token_costs_the_same_however_many_wait(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0

    def less(one: Place, other: tuple[object, ...]) -> bool:
        nonlocal compared
        compared += 1
        return tuple.__lt__(one, other)

    monkeypatch.setattr(Place, "__lt__", less)

    def cost(waiting: int) -> int:
        nonlocal compared
        core = Stepwise(policy, quantum=2, slots=4)

        def add(task: int) -> None:
            core.add(task, agent=f"/{task % 50}/a{task % 7}", program=f"/{task % 50}")

        for task in range(waiting):
            add(task)
        compared = 0
        for token in range(200):
            for each in list(core.scheduler.running.values()):
                for decision in core.served(each.id, 1, float(token)):
                    if isinstance(decision, Preempt):
                        core.halted(decision.task, float(token))
                    core.scheduler.upcoming()
                if each.decoded == 8 and each.state == "running":
                    core.remove(each.id, float(token))
                    add(each.id)
        return compared

    assert cost(4000) <= 4 * cost(100)  # of 40 times as many


@pytest.mark.parametrize(("nice", "turn"), [(-20, 867.4), (-4, 24.4), (0, 10), (4, 4.1), (19, 1)])
def test_nice_changes_the_quantum_by_a_quarter_a_step(nice: int, turn: float) -> None:
    core = Stepwise("rr", quantum=10)
    core.add(1, nice=nice)
    core.add(2)
    used = 0
    while not core.served(1, 1):
        used += 1
    assert used < turn <= used + 1


def test_an_unknown_policy_changes_nothing() -> None:
    scheduler = Scheduler("rr", quantum=4)
    with pytest.raises(BadInput, match="one of fair, fifo"):
        scheduler.set_policy("lottery", 8, 0.0)
    assert (scheduler.policy_name, scheduler.quantum) == ("rr", 4)


def test_what_runs_counts_under_the_next_policy() -> None:
    core = Stepwise("fifo", quantum=4, slots=2)
    for task in (1, 2, 3):
        core.add(task, program="/a", agent="/a")
    core.add(4, program="/b", agent="/b")
    core.scheduler.set_policy("fair", 4, 0.0)
    assert core.remove(1) == [Dispatch(4)]  # /a has another slot


def test_time_suspended_is_not_waiting() -> None:
    core = Stepwise("fifo", quantum=1)
    core.add(1)
    core.add(2)
    core.scheduler.suspend([2], True, 3.0)
    core.scheduler.suspend([2], False, 10.0)
    assert core.remove(1, 11.0) == [Dispatch(2)]
    assert core.scheduler.tasks[2].waiting == 4.0


def test_the_waiting_time_of_a_task_that_is_removed_is_final() -> None:
    scheduler = Scheduler("fifo", quantum=1)
    task = Task(1)
    scheduler.add(task, 2.0)
    scheduler.remove(1, 9.0)
    assert task.waiting == 7.0


def test_what_ran_when_the_core_died_runs_first_on_the_next() -> None:
    core = Stepwise("rr", quantum=4, slots=2)
    for task in (1, 2, 3):
        core.add(task)
    assert core.scheduler.set_slots(0, 1.0) == []
    assert core.scheduler.set_slots(2, 2.0) == [Dispatch(1), Dispatch(2)]


def test_a_late_confirmation_from_a_dead_core_changes_nothing() -> None:
    core = Stepwise("rr", quantum=4)
    core.add(1)
    core.scheduler.set_slots(0, 1.0)
    assert core.scheduler.set_slots(1, 2.0) == [Dispatch(1)]
    assert core.halted(1, 3.0) == []
    assert core.scheduler.tasks[1].state == "running"
