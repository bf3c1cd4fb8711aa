"""Wait for the end of processes (proc.wait)."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from aios.syscalls import proc
from aios.syscalls.errors import AiosError, BadInput, Denied, ProcessGone, TimedOut
from aios.syscalls.proc import Exited

from ..entry.call import Call
from ..lib.callbacks import After
from ..lib.coroutine import Wait, within
from ..process import Process, ProcessTable


class Waiter(NamedTuple):
    """A call that waits."""

    pid: int | None  # None: any child
    call: Call
    wait: Wait[Exited]


class Waiters:
    """All calls that wait."""

    def __init__(self, table: ProcessTable, after: After) -> None:
        self.table, self.after = table, after
        # By the pid of the process that is to end; by minus its parent's where it is any child.
        self.waiters: dict[int, dict[int, Waiter]] = {}

    async def wait(self, call: Call, args: proc.Wait) -> Exited:
        """Return the end of a process, or of any child: one that has ended, or the next.

        Raises:
            TimedOut: none has ended within `timeout` seconds.
        """
        pid, timeout = args.pid, args.timeout
        end = self._end_for(call.process, pid)
        if end is not None:
            return end
        about, wait = -call.process.pid if pid is None else pid, Wait[Exited]()
        self.waiters.setdefault(about, {})[id(wait)] = Waiter(pid, call, wait)
        try:
            return await within(
                wait, timeout, self.after,
                lambda: wait.fail(TimedOut(f"it has not ended within {timeout:g} s")),
            )  # fmt: skip
        finally:
            del self.waiters[about][id(wait)]
            if not self.waiters[about]:
                del self.waiters[about]

    def _end_for(self, caller: Process, pid: int | None) -> Exited | None:
        """Return the end that `caller` gets now, if any; for any child, each end once."""
        if pid is not None:
            child = self.table.get(pid)
            if child.kind != "agent":
                raise BadInput(f"process {pid} is a {child.kind}: only agents are waited for")
            if caller.kind != "client" and child.parent != caller.pid:
                raise Denied(f"process {pid} is not a child of {caller.pid}")
            ended = [] if child.alive else [child]
        else:
            rows = (self.table.rows[child] for child in sorted(caller.children))
            children = [child for child in rows if not child.tool]
            ended = [child for child in children if not child.alive and not child.waited]
            if not ended and not any(child.alive for child in children):
                raise ProcessGone("there is no child to wait for")
        if not ended:
            return None
        ended[0].waited |= ended[0].parent == caller.pid
        ended[0].touch()
        caller.hear(ended[0])
        return exited(ended[0])

    def ended(self, process: Process) -> None:
        """Answer those who wait for the end of this process."""
        self._child_ended([*self.waiters.get(-process.parent, {}).values()])
        for waiter in [*self.waiters.get(process.pid, {}).values()]:
            try:
                end = self._end_for(waiter.call.process, waiter.pid)
            except AiosError as error:
                waiter.wait.fail(error)
            else:
                assert end is not None
                waiter.wait.done(end)

    def _child_ended(self, waiting: list[Waiter]) -> None:
        """Answer waits of one process for any child, while there are ends for them."""
        for at, waiter in enumerate(waiting):
            try:
                end = self._end_for(waiter.call.process, None)
            except AiosError as error:
                for other in waiting[at:]:
                    other.wait.fail(error)
                return
            if end is None:
                return
            waiter.wait.done(end)

    def check(self) -> list[str]:
        """List each broken invariant in words."""
        calls = [waiter.call for each in self.waiters.values() for waiter in each.values()]
        return [f"a wait of call {call.id} is kept" for call in calls if call.ended]


def exited(process: Process) -> Exited:
    return Exited(
        pid=process.pid,
        name=process.name,
        code=process.code if process.code is not None else -1,
        reason=process.reason,
        result=msgspec.Raw(process.result),
        output_lost=process.output_lost,
    )
