"""The tool manager, alone, against all that can happen to calls, workers, callers and the kernel,
in any order: each call has one final reply, locks and limits hold for what processes really do, no
worker stays that nobody needs, and whatever waits gets its turn."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from tool_callers import SPECS, Call
from tools_world import MOST, World

from aios.syscalls import tool as m

TestWorld = World.TestCase


def test_a_toolbox_that_never_serves_is_ended_and_whoever_waits_hears_of_it() -> None:
    world = World()
    world.call(1, "lab.add", None)
    world.list_(1)
    waiting = list(world.calls)
    for _ in range(9):  # the listing has a worker of each box started
        world.time_passes(61.0)
        for process in world.workers("ending"):
            world._end(process)
    assert "does not serve within 60 s" in str(waiting[0].ends[0])
    listed = waiting[1].ends[0]
    assert ["does not serve" in box.error for box in listed.boxes] == [True] * 3


def test_a_caller_that_ends_while_its_worker_starts_costs_nobody_else() -> None:
    world = World()
    world.call(0, "lab.add", None)
    (starting,) = world.workers("starting")
    world.caller_ends(0)
    world._end(starting)
    world.call(1, "lab.add", None)
    call = world.calls[-1]
    assert not call.ended
    (process,) = world.workers("starting")
    world._serve(process)
    world._hear()
    (job,) = world.doing[process.pid]
    world._done(process.pid, job)
    assert isinstance(call.ends[0], m.ToolResult)


def order_of(world: World) -> list[int]:
    """The places of the jobs that wait, in the order in which they end."""
    calls, order = list(world.calls), []
    while world.calls:
        for process in world.workers("ending"):
            world._end(process)
        for process in world.workers("starting"):
            world._serve(process)
        world._hear()
        for pid, jobs in list(world.doing.items()):
            for job in list(jobs):
                world._done(pid, job)
        order += [calls.index(call) for call in world.calls if call.ended]
        world.no_call_has_two_ends()
    world.teardown()
    return order


def test_a_lock_goes_round_whoever_calls_more() -> None:
    world = World()
    for who in (0, 0, 1, 0, 0, 1):
        world.call(who, "lab.alone", None)
    assert order_of(world) == [0, 2, 1, 5, 3, 4]


@pytest.mark.parametrize("name", ["new.plain", "mcp.plain"])
def test_a_tree_of_agents_that_calls_a_lot_waits_for_itself(name: str) -> None:
    world = World()
    world.callers[0].principal, world.callers[1].principal = "/evil", "/evil/child"
    world.callers[2].principal = "/good"
    for who in (0, 1) * 10:
        world.call(who, name, None)
    world.call(2, name, None)
    assert order_of(world).index(20) <= MOST


def test_a_tree_of_agents_leaves_workers_for_others() -> None:
    world = World()
    for who, principal in enumerate(("/evil", "/evil/child", "/good")):
        world.callers[who].principal = principal
        for _ in range(2 if who < 2 else 1):
            world.call(who, "lab.add", None)
    starting = [process.principal for process in world.workers("starting")]
    assert sorted(starting) == ["/evil", "/evil", "/good"]
    assert len(order_of(world)) == 5


def test_calls_that_wait_take_as_much_memory_as_their_arguments_have_bytes() -> None:
    """As lists in lists these would take 3 MB each."""
    world = World()
    tool = min(SPECS)
    tracemalloc.start()
    try:
        for _ in range(20):
            args: dict[str, Any] = {"x": [[] for _ in range(50_000)]}
            world._call(Call(world.callers[0], m.CallTool(name=tool, args=args)))
            world.calls[-1].args = None
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 20 * 50_000 < held < 10 * 20 * 50_000
