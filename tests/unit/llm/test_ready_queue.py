"""The ready queue beside a list that is sorted anew each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aios.kernel.llm.scheduler.policy import Path, Policy
from aios.kernel.llm.scheduler.ready_queue import Heap, ReadyQueue
from aios.kernel.llm.scheduler.task import Task


class Given(Policy):
    """A policy whose places are what a test says."""

    turn = 3.0

    def __init__(self) -> None:
        super().__init__(1)
        self.places: dict[Path, float] = {}

    def path(self, task: Task) -> Path:
        return task.program, task.agent

    def share(self, path: Path) -> float:
        return self.places.get(path, 0.0)

    def key(self, task: Task) -> float:
        return task.queued


def in_order(policy: Given, tasks: list[Task], count: int) -> list[int]:
    """The first tasks, found one after the other among all."""
    left, places = list(tasks), dict(policy.places)
    found: list[int] = []
    while left and len(found) < count:
        program = min({t.program for t in left}, key=lambda p: places.get((p,), 0.0))
        agents = {t.agent for t in left if t.program == program}
        agent = min(agents, key=lambda a: places.get((program, a), 0.0))
        own = [t for t in left if (t.program, t.agent) == (program, agent)]
        first = min(own, key=policy.key)
        left.remove(first)
        found.append(first.id)
        for path in ((program,), (program, agent)):
            places[path] = places.get(path, 0.0) + policy.turn
    return found


PLACE = st.integers(0, 40)


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "drop", "move"]), st.integers(0, 2), st.integers(0, 2), PLACE
        ),
        max_size=60,
    )
)
def test_tasks_come_in_the_order_of_their_shares(
    steps: list[tuple[str, int, int, int]],
) -> None:
    policy = Given()
    queue, tasks = ReadyQueue(policy), dict[int, Task]()
    for number, (what, program, agent, place) in enumerate(steps):
        path = f"/{program}", f"/{program}/{agent}"
        if what == "put":
            tasks[number] = Task(number, path[1], path[0], queued=place * 100 + number)
            queue.put(tasks[number])
        elif what == "drop" and tasks:
            task_id = sorted(tasks)[place % len(tasks)]
            del tasks[task_id]
            queue.drop(task_id)
            queue.drop(task_id)  # a second time changes nothing
        elif what == "move":
            # No two shares have the same place, now or after turns.
            policy.places[path[:1]] = place + program / 10
            policy.places[path] = place + agent / 10
            queue.refresh(path)
        for each in (0, 1, 2):
            policy.places.setdefault((f"/{each}",), each / 10)
            for below in (0, 1, 2):
                policy.places.setdefault((f"/{each}", f"/{each}/{below}"), below / 10)
        for task in tasks.values():
            queue.refresh(policy.path(task))
        for count in (1, 3, 100):
            assert queue.first(count) == in_order(policy, list(tasks.values()), count)
        assert len(queue) == len(tasks)


def test_what_leaves_a_heap_is_forgotten() -> None:
    heap = Heap()
    heap.put(0, 0.0)
    for task in range(1, 5000):
        heap.put(task, float(task))
        heap.drop(task)
    assert heap.first().item == 0
    assert len(heap._heap) < 200


def test_of_equal_keys_the_first_that_was_put_is_first() -> None:
    heap = Heap()
    for item in (3, 1, 2):
        heap.put(item, 0.0)
    heap.put(3, 0.0)  # it is there already
    assert [heap.take().item for _ in range(3)] == [3, 1, 2]
