"""Ways to other processes."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct

from probes.base import Probe, Targets, call, did, opens, read


def peek(t: Targets) -> bytes:
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("=QQ", ctypes.addressof(buffer), 8)
    call(310, 270, t["sibling"], local, 1, struct.pack("=QQ", t["address"], 8), 1, 0)
    return buffer.raw


def poke(t: Targets) -> int:
    local = ctypes.create_string_buffer(8)
    vector = struct.pack("=QQ", ctypes.addressof(local), 0)
    return call(311, 271, t["sibling"], vector, 1, struct.pack("=QQ", t["address"], 0), 1, 0)


def attach(t: Targets) -> bool:
    seize, interrupt, detach = 0x4206, 0x4207, 17
    call(101, 117, seize, t["sibling"], 0, 0)
    call(101, 117, interrupt, t["sibling"], 0, 0)
    os.waitpid(t["sibling"], 0)
    return call(101, 117, detach, t["sibling"], 0, 0) == 0


def take_descriptor(t: Targets) -> int:
    return call(438, 438, os.pidfd_open(t["sibling"]), 1, 0)


def by_pidfd(t: Targets) -> bool:
    signal.pidfd_send_signal(os.pidfd_open(t["sibling"]), 0)
    return True


def queue_signal(t: Targets) -> bool:
    queued = struct.pack("=iii", 0, 0, -1) + bytes(116)
    return call(129, 138, t["sibling"], 0, queued) == 0


def everybody(t: Targets) -> bool:
    """A signal that none but the sibling takes notice of; with 0 Linux says yes in any case."""
    os.kill(-1, signal.SIGURG)
    t["aios"].send(t["pid"], "signalled?")
    if not t["aios"].recv(timeout=10).body:
        raise PermissionError("it did not arrive")
    return True


def same_priority(pid: int) -> bool:
    os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))
    return True


def same_limits(pid: int) -> bool:
    limits = resource.prlimit(pid, resource.RLIMIT_CORE)
    resource.prlimit(pid, resource.RLIMIT_CORE, limits)
    return True


OTHERS: dict[str, Probe] = {
    "a sibling's memory file": lambda t: opens(f"/proc/{t['sibling']}/mem"),
    "a sibling's memory": peek,
    "write a sibling's memory": lambda t: poke(t) == 0,
    "a sibling's maps": lambda t: read(f"/proc/{t['sibling']}/maps"),
    "a sibling's environment": lambda t: read(f"/proc/{t['sibling']}/environ"),
    "a sibling's command line": lambda t: read(f"/proc/{t['sibling']}/cmdline"),
    "a sibling's working folder": lambda t: read(f"/proc/{t['sibling']}/cwd/note"),
    "a sibling's descriptors": lambda t: os.listdir(f"/proc/{t['sibling']}/fd"),
    "the kernel's environment": lambda t: read(f"/proc/{t['kernel']}/environ"),
    "the kernel's descriptors": lambda t: os.listdir(f"/proc/{t['kernel']}/fd"),
    "ptrace": attach,
    "pidfd_getfd": take_descriptor,
    "kcmp": lambda t: call(312, 272, os.getpid(), t["sibling"], 0, 0, 0) >= 0,
    "signal a sibling": lambda t: did(os.kill, t["sibling"], 0),
    "signal a sibling's group": lambda t: did(os.killpg, t["sibling"], 0),
    "signal the kernel": lambda t: did(os.kill, t["kernel"], 0),
    "signal init": lambda t: did(os.kill, t["init"], 0),
    "signal a person's process": lambda t: did(os.kill, t["person"], 0),
    "signal everybody": everybody,
    "signal by pidfd": by_pidfd,
    "signal a thread": lambda t: call(234, 131, t["sibling"], t["sibling"], 0) == 0,
    "signal a thread by its number alone": lambda t: call(200, 130, t["sibling"], 0) == 0,
    "a queued signal": queue_signal,
    "a sibling's priority": lambda t: same_priority(t["sibling"]),
    "a sibling's processors": lambda t: did(os.sched_setaffinity, t["sibling"], t["processors"]),
    "a sibling's scheduling": lambda t: did(
        os.sched_setscheduler, t["sibling"], os.SCHED_BATCH, os.sched_param(0)
    ),
    "a sibling's limits": lambda t: same_limits(t["sibling"]),
    "a sibling's disk priority": lambda t: call(251, 30, 1, t["sibling"], 4 | 2 << 13) == 0,
    "a sibling's pages": lambda t: call(279, 239, t["sibling"], 0, 0, 0, 0, 0) == 0,
}  # fmt: skip
