"""Those who wait for the end of a process (proc.wait)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from aios.syscalls.errors import AiosError, BadInput, Denied, ProcessGone, TimedOut
from aios.syscalls.messages import Exited

from ..entry.trap import Call
from ..process import Process, ProcessTable


class Waiters:
    """`after(seconds, run)` starts a timer that can be cancelled."""

    def __init__(
        self, table: ProcessTable, after: Callable[[float, Callable[[], None]], Any]
    ) -> None:
        self.table, self.after = table, after
        # By whose end they wait for: a process, or with a minus all children of one.
        self.waiters: dict[int, dict[int, tuple[int | None, Call]]] = {}

    def wait(self, call: Call, pid: int | None, timeout: float | None) -> Exited | None:
        """The end of `pid` or of any child, if one is there; None: the call waits for it."""
        end = self._end_for(call.process, pid)
        if end is not None:
            return end
        about, key = -call.process.pid if pid is None else pid, id(call)
        self.waiters.setdefault(about, {})[key] = (pid, call)
        timer = None
        if timeout is not None:
            error = TimedOut(f"it has not ended within {timeout:g} s")
            timer = self.after(timeout, lambda: call.fail(error))

        def stop() -> None:
            del self.waiters[about][key]
            if not self.waiters[about]:
                del self.waiters[about]
            if timer is not None:
                timer.cancel()

        call.on_end = stop
        return None

    def _end_for(self, caller: Process, pid: int | None) -> Exited | None:
        """What a wait of `caller` gets now. Waiting for any child hands out each child once."""
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
        """Answer those for whom that is the end they wait for."""
        self._child_ended([call for _, call in self.waiters.get(-process.parent, {}).values()])
        for pid, call in [*self.waiters.get(process.pid, {}).values()]:
            try:
                end = self._end_for(call.process, pid)
            except AiosError as error:
                call.fail(error)
            else:
                call.done(end)

    def _child_ended(self, waiting: list[Call]) -> None:
        """Answer some of one process that wait for any child."""
        for at, call in enumerate(waiting):
            try:
                end = self._end_for(call.process, None)
            except AiosError as error:
                for other in waiting[at:]:
                    other.fail(error)
                return
            if end is None:
                return
            call.done(end)

    def check(self) -> list[str]:
        waiting = [call for calls in self.waiters.values() for _, call in calls.values()]
        return [f"a wait of call {call.id} is kept" for call in waiting if call.ended]


def exited(process: Process) -> Exited:
    return Exited(
        pid=process.pid,
        name=process.name,
        code=process.code if process.code is not None else -1,
        reason=process.reason,
        result=msgspec.Raw(process.result),
    )
