"""Ways to use up what others need. Each returns how far it came."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import threading

from probes.base import Probe, Targets


def fork_bomb(_: Targets) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            if os.fork() == 0:
                signal.pause()
            count += 1
    return count


def thread_bomb(_: Targets) -> int:
    count, end = 0, threading.Event()
    with contextlib.suppress(RuntimeError):
        while True:
            threading.Thread(target=end.wait, daemon=True).start()
            count += 1
    end.set()
    return count


def memory_bomb(_: Targets) -> int:
    return mapped(mmap.MAP_PRIVATE)


def shared_memory_bomb(_: Targets) -> int:
    return mapped(mmap.MAP_SHARED)


def mapped(kind: int) -> int:
    hoard: list[mmap.mmap] = []
    with contextlib.suppress(OSError):
        while True:
            hoard.append(mmap.mmap(-1, 1 << 24, kind | mmap.MAP_ANONYMOUS))
    return len(hoard) << 24


def descriptor_bomb(_: Targets) -> int:
    count = 0
    with contextlib.suppress(OSError):
        while True:
            os.dup(0)
            count += 1
    return count


def descriptors_under_way(t: Targets) -> int:
    """Send descriptors to itself and never receive them: they count for all processes of its user.

    Others that talk to it meanwhile find out how that affects them.
    """
    ends = socket.socketpair()
    sent = 0
    with contextlib.suppress(OSError):
        while True:
            socket.send_fds(ends[0], [b"x"], [0] * 250)
            sent += 250
    t["aios"].send(t["aios"].recv().sender, sent)
    t["aios"].recv()
    return sent


def file_bomb(_: Targets) -> int:
    count = 0
    with contextlib.suppress(OSError), open("big", "wb", buffering=0) as file:
        while True:
            count += file.write(bytes(1 << 16))
    return count


def other_architecture(_: Targets) -> int:
    """getpid of 32 bits, by `int 0x80`."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("b814000000cd80c3"))
    at = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(at)())


def a_child(_: Targets) -> int:
    os_pid = os.fork()
    if os_pid == 0:
        os._exit(0)
    return os.waitpid(os_pid, 0)[1]


BOMBS: dict[str, Probe] = {
    probe.__name__: probe
    for probe in (
        fork_bomb, thread_bomb, memory_bomb, shared_memory_bomb, descriptor_bomb, file_bomb,
        other_architecture, a_child, descriptors_under_way,
    )
}  # fmt: skip
