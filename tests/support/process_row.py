"""A row of `ps`."""

from __future__ import annotations

from aios.syscalls.proc import Kind, ProcessInfo, ProcessState


def row(
    pid: int, name: str, state: ProcessState = "running", kind: Kind = "agent", tool: str = ""
) -> ProcessInfo:
    return ProcessInfo(
        pid=pid, parent=0, name=name, kind=kind, state=state, os_pid=1, nice=0, age=1.0, cpu=0.0,
        memory=0, contexts=0, queue=0, tokens=0, calls=0, generations=0, waiting=0.0, switches=0,
        code=None, reason="", principal=f"/{name}", tool=tool,
    )  # fmt: skip
