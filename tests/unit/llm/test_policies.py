"""Each policy by the decision that makes it different from the others."""

from __future__ import annotations

import pytest
from scheduling import Stepwise

from aios.kernel.llm.scheduler import priority, shares, shortest_job
from aios.kernel.llm.scheduler.attained_service import AttainedService
from aios.kernel.llm.scheduler.fair_share import FairShare
from aios.kernel.llm.scheduler.levels import AGING_S, LEVELS
from aios.kernel.llm.scheduler.scheduler import Dispatch, Preempt
from aios.kernel.llm.scheduler.shares import ShareCounters
from aios.kernel.llm.scheduler.shortest_job import ShortestJob

# --- rr, fair: whose turn it is ------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["rr", "fair"])
def test_a_tree_has_one_turn_a_round_however_many_wait(policy: str) -> None:
    core = Stepwise(policy, quantum=8)
    for task in range(64):
        agent = f"/greedy/{task % 8}"
        core.add(task, agent=agent, program="/greedy")
    core.add(70, agent="/other", program="/other")
    core.add(71, agent="/other", program="/other")
    turns = [0]
    for _ in range(4):  # each ends after a turn
        core.served(turns[-1], 1)
        turns += [each.task for each in core.remove(turns[-1]) if isinstance(each, Dispatch)]
    assert turns == [0, 70, 1, 71, 2]


@pytest.mark.parametrize("policy", ["rr", "fair"])
def test_an_agent_has_one_turn_a_round_of_its_tree(policy: str) -> None:
    core = Stepwise(policy, quantum=8)
    for task in range(64):
        core.add(task, agent="/tree/greedy", program="/tree")
    core.add(70, agent="/tree/other", program="/tree")
    core.add(71, agent="/tree/other", program="/tree")
    core.served(0, 1)
    core.remove(0)
    assert list(core.scheduler.running) == [70]


@pytest.mark.parametrize("policy", ["rr", "fair"])
def test_nobody_saves_turns_by_being_away(policy: str) -> None:
    core = Stepwise(policy, quantum=4)
    core.add(0, agent="/a", program="/a")
    for task in range(1, 20):
        core.add(task, agent="/a", program="/a")
        core.served(task - 1, 4)
        core.remove(task - 1)
    core.served(19, 3)
    for task in range(20, 40):
        core.add(task, agent="/new", program="/new")
        core.add(task + 100, agent="/a", program="/a")
    turns = []
    for _ in range(8):
        [task] = core.scheduler.running
        turns.append(core.scheduler.tasks[task].agent)
        core.served(task, 4)
        if task in core.scheduler.running:
            core.remove(task)
        else:
            core.halted(task)
    assert turns.count("/new") == 4


def test_slots_that_are_free_go_to_all_shares() -> None:
    core = Stepwise("fair", quantum=8, slots=0)
    for task in range(20):
        agent = "/few" if task >= 16 else "/many"
        core.add(task, agent=agent, program=agent)
    core.scheduler.set_slots(8, 0.0)
    assert sorted(core.scheduler.running) == [0, 1, 2, 3, 16, 17, 18, 19]


def test_a_step_of_nice_counts_for_a_quarter() -> None:
    core = Stepwise("fair", quantum=4)
    core.add(1, agent="/a", program="/a", nice=4)
    core.add(2, agent="/b", program="/b")
    had = {1: 0, 2: 0}
    for _ in range(4000):
        [task] = core.scheduler.running
        had[task] += 1
        for each in core.served(task, 1):
            if isinstance(each, Preempt):
                core.halted(each.task)
    assert had[2] / had[1] == pytest.approx(1.25**4, rel=0.05)


@pytest.mark.parametrize("stays", [True, False])
def test_counters_of_those_that_are_gone_are_bounded(stays: bool) -> None:
    counters = ShareCounters()
    if stays:  # and has no turn, so nothing that the others have had is forgotten for it
        counters.join(("/stays", "/stays/a"))
    for number in range(10_000):
        path = f"/{number}", f"/{number}/a"
        counters.join(path)
        counters.start(path)
        counters.charge(path, number % 7)
        counters.leave(path)
    assert len(counters.had) <= 2 * (shares.MAX_IDLE + 3)
    assert counters.floor.keys() <= {()}


def test_who_comes_back_has_had_what_it_had() -> None:
    """Whoever leaves with more than the others does not begin anew."""
    counters = ShareCounters()
    for name, had in (("/a", 100.0), ("/b", 10.0)):
        counters.join((name,))
        counters.start((name,))
        counters.charge((name,), had)
    counters.leave(("/a",))
    counters.join(("/a",))
    assert counters.had["/a",] == 100.0


# --- priority ------------------------------------------------------------------------------------


def test_an_urgent_task_runs_from_the_next_token_on() -> None:
    core = Stepwise("priority", quantum=32)
    core.add(1, nice=5)
    core.served(1, 1)
    assert core.add(2, 1.0, nice=-5) == [Preempt(1), Dispatch(2)]
    core.halted(1, 1.0)
    assert core.served(2, 1000, 2.0) == []
    assert core.add(3, 3.0, nice=0) == []
    assert core.order() == [3, 1]


def test_of_those_that_run_the_least_urgent_makes_room() -> None:
    core = Stepwise("priority", quantum=32, slots=3)
    for task, nice in ((1, 3), (2, 9), (3, -4)):
        core.add(task, nice=nice)
    assert core.add(4, nice=0) == [Preempt(2), Dispatch(4)]


def test_no_task_waits_for_those_that_come_much_later() -> None:
    last = 39 * priority.AGING_S
    core = Stepwise("priority", quantum=32)
    core.add(1, nice=-20)
    core.add(2, nice=19)
    core.add(3, last - 1, nice=-20)
    core.add(4, last + 1, nice=-20)
    assert core.order() == [3, 2, 4]


# --- sjf -----------------------------------------------------------------------------------------


def test_an_agent_whose_answers_were_short_is_next() -> None:
    core = Stepwise("sjf", quantum=32)
    for task, agent, length in ((1, "/long", 900), (2, "/short", 9)):
        core.add(task, agent=agent)
        core.served(task, length)
        core.remove(task)
    core.add(3)
    core.add(4, agent="/long", limit=2000)
    core.add(5, agent="/short", limit=2000)
    core.add(6, agent="/long", limit=5)  # it says that it is short
    assert core.order() == [6, 5, 4]


def test_a_long_prompt_is_work_too() -> None:
    core = Stepwise("sjf", quantum=32)
    core.add(1)
    core.add(2, prompt=8000)
    core.add(3, prompt=100)
    assert core.order() == [3, 2]


def test_the_longest_job_waits_so_long_at_most() -> None:
    core = Stepwise("sjf", quantum=32)
    core.add(1)
    core.add(2, prompt=10**6)
    core.add(3, shortest_job.AGING_S - 1, limit=1)
    core.add(4, shortest_job.AGING_S + 1, limit=1)
    assert core.order() == [3, 2, 4]


def test_lengths_of_so_many_agents_are_remembered() -> None:
    core = Stepwise("sjf", quantum=32)
    for number in range(shortest_job.MAX_AGENTS + 50):
        core.add(number, agent=f"/{number}")
        core.served(number, 7)
        core.remove(number)
    policy = core.scheduler.policy
    assert isinstance(policy, ShortestJob)
    assert len(policy.lengths) == shortest_job.MAX_AGENTS


# --- mlfq, las: levels ---------------------------------------------------------------------------


def test_a_long_prompt_skips_the_levels_whose_turns_it_would_use_up() -> None:
    core = Stepwise("mlfq", quantum=16)
    core.add(1)
    for task, prompt in ((2, 500), (3, 20), (4, 10)):
        core.add(task, prompt=prompt)
    assert core.order() == [4, 3, 2]


def test_a_task_sinks_with_each_turn_that_it_uses_up() -> None:
    core = Stepwise("mlfq", quantum=4)
    core.add(1)
    core.add(2)
    assert core.served(1, 3) == []
    assert core.served(1, 1) == [Preempt(1), Dispatch(2)]
    core.halted(1)
    assert core.served(2, 3) == []  # it is above still
    assert core.served(2, 1) == []  # both are on the second level, with turns of 8
    assert core.served(2, 3) == []
    assert core.served(2, 1) == [Preempt(2), Dispatch(1)]


def test_who_is_on_a_higher_level_runs_at_once() -> None:
    core = Stepwise("mlfq", quantum=4)
    core.add(1, prompt=100)
    core.served(1, 0, prefilled=10)
    assert core.add(2, prompt=1) == [Preempt(1), Dispatch(2)]


def test_a_call_of_a_long_program_does_not_pass_for_a_short_one() -> None:
    core = Stepwise("las", quantum=16)
    core.add(1, program="/long")
    core.served(1, 500)
    core.remove(1)
    core.add(2, program="/third")
    core.add(3, program="/long")
    core.add(4, program="/short")
    assert core.order() == [4, 3]


@pytest.mark.parametrize("policy", ["mlfq", "las"])
def test_the_lowest_level_waits_so_long_at_most(policy: str) -> None:
    core = Stepwise(policy, quantum=4)
    core.add(0, program="/long")
    core.served(0, 10**6)
    core.remove(0)
    core.add(1, program="/new")
    core.add(2, prompt=10**6, program="/long")
    core.add(3, (LEVELS - 1) * AGING_S - 1, program="/b")
    core.add(4, (LEVELS - 1) * AGING_S + 1, program="/c")
    assert core.order() == [3, 2, 4]


@pytest.mark.parametrize("policy", ["mlfq", "las"])
def test_who_has_waited_for_a_turn_has_it_whatever_comes_then(policy: str) -> None:
    """Or the turn would end with its first token, and the waiting begin anew."""
    waited = (LEVELS - 1) * AGING_S + 1
    core = Stepwise(policy, quantum=4)
    core.add(0, program="/long")
    core.served(0, 10**6)
    core.remove(0)
    core.add(1, program="/new")
    core.add(2, prompt=10**6, program="/long")
    assert core.remove(1, waited) == [Dispatch(2)]
    assert core.add(3, waited, program="/b") == []
    assert core.served(2, 1, waited) == []
    assert core.served(2, 4 * 2 ** (LEVELS - 1), waited) == [Preempt(2), Dispatch(3)]


def test_so_many_programs_are_remembered() -> None:
    core = Stepwise("las", quantum=32)
    for number in range(5000):
        core.add(number, program=f"/{number}")
        core.served(number, 7)
        core.remove(number)
    policy = core.scheduler.policy
    assert isinstance(policy, AttainedService)
    assert len(policy.attained) == 4096


def test_nothing_is_kept_of_tasks_that_are_gone() -> None:
    core = Stepwise("fair", quantum=32, slots=3)
    for number in range(100):
        core.add(number, agent=f"/{number % 5}", program=f"/{number % 5}")
    core.order()
    policy = core.scheduler.policy
    assert isinstance(policy, FairShare)
    assert not policy.advances
    assert not policy.ahead
    assert core.scheduler.ready.shares.keys() == {()}
