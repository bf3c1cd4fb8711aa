"""Ways to change or widen what Linux lets the agent do."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal

from probes.base import Probe, Targets, call, refused_before


def capabilities(_: Targets) -> int:
    """Raises PermissionError where it has none and can have none."""
    header, all_of_them = (0x20080522).to_bytes(4, "little") + bytes(4), b"\xff" * 24
    held = ctypes.create_string_buffer(24)
    call(125, 90, header, held)
    if any(held.raw):
        return 1
    call(126, 91, header, all_of_them)
    return 2


def readable_by_others(_: Targets) -> bool:
    if call(157, 167, 3, 0, 0, 0, 0) != 1:
        raise PermissionError("it is not dumpable")
    return True


def a_setuid_program(_: Targets) -> bool:
    """Got where programs still gain what their file says."""
    if call(157, 167, 39, 0, 0, 0, 0) == 1:
        raise PermissionError("no_new_privs is set")
    return True


def namespace(flag: int) -> Probe:
    def probe(_: Targets) -> bool:
        call(56, 220, flag | signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)
        return True

    return probe


def mounted(_: Targets) -> bool:
    here = os.getcwd().encode()
    call(165, 40, b"x", here, b"tmpfs", 0, 0)
    return call(166, 39, here, 2) == 0


def shared_memory(_: Targets) -> bool:
    return call(31, 195, call(29, 194, 0, 4096, 0o1600), 0, 0) == 0


def queue(_: Targets) -> bool:
    return call(71, 187, call(68, 186, 0, 0o1600), 0, 0) == 0


def named_queue(_: Targets) -> bool:
    call(240, 180, b"probe", 0o102, 0o600, 0)
    return call(241, 181, b"probe") == 0


def lease(_: Targets) -> bool:
    """Lease a file that it reads: others who open that have to wait."""
    with open(__file__) as file:
        return fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK) == 0


LINUX: dict[str, Probe] = {
    "mount": mounted,
    "umount": refused_before(166, 39, b"/nowhere", 0),
    "pivot_root": refused_before(155, 41, b"/nowhere", b"/nowhere"),
    "open_tree": lambda t: call(428, 428, -100, b"/", 1),
    "fsopen": lambda t: call(430, 430, b"tmpfs", 0),
    "unshare mounts": refused_before(272, 97, 0x20000),
    "setns": refused_before(308, 268, 0, 0),
    "clone with a namespace": namespace(0x10000000),
    "keyctl": lambda t: call(250, 219, 0, -3, 1),
    "add_key": lambda t: call(248, 217, b"user", b"probe", b"x", 1, -1),
    "request_key": refused_before(249, 218, b"user", b"nothing", 0, -1),
    "bpf": refused_before(321, 280, 0, 0, 0),
    "userfaultfd": lambda t: call(323, 282, 1) + 1,
    "io_uring": refused_before(425, 425, 0, 0),
    "perf_event_open": refused_before(298, 241, 0, 0, -1, -1, 0),
    "personality": lambda t: call(135, 92, 0xFFFFFFFF) >= 0,
    "kexec_load": refused_before(246, 104, 0, 99, 0, 0xFFFF),
    "init_module": refused_before(175, 105, 0, 0, 0),
    "delete_module": refused_before(176, 106, b"nothing", 0),
    "clock_settime": refused_before(227, 112, 99, 0),
    "sethostname": refused_before(170, 161, 0, -1),
    "reboot": refused_before(169, 142, 0, 0, 0, 0),
    "swapon": refused_before(167, 224, b"/nowhere", 0),
    "acct": refused_before(163, 89, b"/nowhere"),
    "fanotify": refused_before(300, 262, -1, 0),
    "quotactl": refused_before(179, 60, -1, 0, 0, 0),
    "System V memory": shared_memory,
    "System V queues": queue,
    "POSIX queues": named_queue,
    "a lease": lease,
    "memfd_create": lambda t: call(319, 279, b"probe", 0),
    "capabilities": capabilities,
    "a setuid program": a_setuid_program,
    "be dumpable": readable_by_others,
    "become dumpable": lambda t: call(157, 167, 4, 1, 0, 0, 0) == 0,
    "outlive its parent": lambda t: call(157, 167, 1, 0, 0, 0, 0) == 0,
    "a call that is not known": refused_before(467, 467, -100, 0, 0, 0, 0),
    "unshare users": refused_before(272, 97, 0x10000000),  # last: it changes who the prober is
}
