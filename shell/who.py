"""The agents that commands are about: found by name, and ended."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from aios.agents import Aios
from aios.syscalls.errors import BadInput, NotFound, ProcessGone, TimedOut
from aios.syscalls.proc import ProcessInfo

GRACE_S = 2.0  # between TERM and KILL


def pid_of(aios: Aios, who: int | str, *, ended: bool = False) -> int:
    """Return the PID of a process by name or number; with `ended` it may have ended.

    Raises:
        NotFound: none has that name.
        BadInput: several have it.
    """
    return who if isinstance(who, int) else find(aios.ps(all=True), who, ended=ended)


def find(rows: Sequence[ProcessInfo], name: str, *, ended: bool = False) -> int:
    """Find a process by name: an agent, else a worker of tools; the newest of those that ended."""
    named = [row for row in rows if name in (row.name, row.principal) and row.kind != "client"]
    named = [row for row in named if not row.tool] or named
    alive = [row.pid for row in named if row.state != "zombie"]
    if len(alive) > 1:
        pids = ", ".join(map(str, sorted(alive)))
        raise BadInput(f"{len(alive)} processes are named {name!r}: {pids}", "give one by its PID")
    if alive or (ended and named):
        return alive[0] if alive else max(row.pid for row in named)
    raise NotFound(f"no agent is named {name!r}", "`aios ps` lists those that are alive")


def finish_off(aios: Aios, pid: int) -> None:
    """End an agent by TERM, and by KILL if it does not end in time, or at another Ctrl-C."""
    with contextlib.suppress(ProcessGone):
        aios.kill(pid, "TERM")
        try:
            aios.wait(pid, timeout=GRACE_S)
        except (TimedOut, KeyboardInterrupt):
            aios.kill(pid, "KILL")
            aios.wait(pid)
