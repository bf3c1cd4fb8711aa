"""Pids that come again: connections of processes that have ended, tried by who has the pid then."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from aios.agents import connect

from .common import Progress
from .raw import HANDSHAKE, dial, is_welcome, path_of

PROGRESS_INTERVAL = 1000  # connections
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def take_over(progress: Progress, home: Path, count: int) -> dict[str, int]:
    """Return how many of `count` connections were taken for whoever has the pid of their maker, and
    how many who had it were not welcome on one of their own."""
    found = {"pids_tried": count, "pids_reused": 0, "pids_taken": 0, "pids_refused": 0}
    with connect(home, "bench") as aios:
        kernel = aios.status().os_pid
    for number in range(count):
        if number % PROGRESS_INTERVAL == 0:
            progress(f"{number} of {count} pids")
        end, pid, other, door = another_with_its_pid(home, kernel, accepted=number % 3)
        found["pids_reused"] += other == pid
        found["pids_taken"] += is_welcome(end)
        end.close()
        os.close(door)
        found["pids_refused"] += os.waitpid(other, 0)[1] != 0
    return found


def another_with_its_pid(
    home: Path, kernel: int, accepted: int
) -> tuple[socket.socket, int, int, int]:
    """Return a connection, the process that made it and has ended, another one with its pid, and a
    pipe. The other one says hello on a connection of its own, and ends when the pipe is closed. The
    kernel accepts the first connection before its maker's end (0), about then (1), or when the
    other one is there (2)."""
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(30)
    if accepted == 2:
        os.kill(kernel, signal.SIGSTOP)
    pid = os.fork()
    if pid == 0:
        end.connect(path_of(home))
        end.sendall(HANDSHAKE)
        if accepted == 0:
            end.recv(1, socket.MSG_PEEK)
        os._exit(0)
    os.waitpid(pid, 0)
    shut, door = os.pipe()
    other = fork_as(pid)
    if other == 0:
        os.close(door)
        welcome = is_welcome(dial(home))
        os.read(shut, 1)
        os._exit(0 if welcome else 1)
    os.close(shut)
    if accepted == 2:
        os.kill(kernel, signal.SIGCONT)
    return end, pid, other, door


def fork_as(pid: int) -> int:
    """Fork. The child gets the given pid, if Linux lets us choose and nobody else was quicker."""
    if os.access(LAST_PID, os.W_OK):
        LAST_PID.write_text(str(pid - 1))
    return os.fork()
