"""The access manager: the one check that every system call passes before any effect.

For now two groups. A client is a person's own process (same user, not started by init) and may do
everything; an agent may use the model, speak to others, and control itself and what it started.
"""

from __future__ import annotations

import os

import psutil

from aios.syscalls.errors import Denied
from aios.syscalls.mem import Whose
from aios.syscalls.messages import Kill, Log, Message, SetLimits, SetNice, Spawn
from aios.syscalls.table import Row

from .process import Process, ProcessTable

AGENT_RIGHTS = frozenset(
    {"none", "proc.spawn", "proc.self", "proc.control", "proc.list", "proc.log", "llm", "msg",
     "mem", "sto", "kernel.read"}
)  # fmt: skip


def check(table: ProcessTable, process: Process, row: Row, args: Message) -> None:
    """Raises Denied unless `process` may make this call."""
    if process.kind == "client":
        return
    if row.right not in AGENT_RIGHTS:
        raise Denied(f"{row.name} needs the right {row.right}, which an agent does not have")
    if isinstance(args, Kill | Log | SetNice | SetLimits) and args.pid is not None:
        _check_above(table, process, row, args.pid)
    if isinstance(args, Whose) and (
        args.principal is not None or args.pid not in (None, process.pid)
    ):
        raise Denied(f"{row.name}: an agent reaches its own memory only")
    if isinstance(args, SetNice | Spawn) and args.nice is not None and args.nice < process.nice:
        raise Denied(f"{row.name}: an agent cannot go below its own nice value of {process.nice}")


def _check_above(table: ProcessTable, process: Process, row: Row, pid: int) -> None:
    if pid != process.pid and not table.is_above(process.pid, table.get(pid)):
        raise Denied(f"{row.name}: process {pid} is neither the caller nor started by it")


def is_child(os_pid: int, init_pid: int) -> bool:
    """Whether init itself started this process: an agent's child may have the agent's token."""
    try:
        return psutil.Process(os_pid).ppid() == init_pid
    except psutil.NoSuchProcess:
        return False


def may_be_client(os_pid: int, init_pid: int) -> bool:
    """Whether a connection without a token is a person's: its process does not descend from init.

    An agent that says hello without its token would otherwise get a client's rights.
    """
    try:
        above = psutil.Process(os_pid).parents()
        owner = psutil.Process(os_pid).uids().real
    except psutil.NoSuchProcess:
        return False
    return owner == os.getuid() and init_pid not in {process.pid for process in above}
