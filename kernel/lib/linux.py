"""System calls of Linux that Python has no function for."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import socket
import struct
from pathlib import Path

ON_ARM = platform.machine() == "aarch64"
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CAPSET = 91 if ON_ARM else 126
SO_PEERPIDFD = 77  # from Linux 6.5 on
PEER_CREDENTIALS = (socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
PEER_PIDFD = (socket.SOL_SOCKET, SO_PEERPIDFD, 4)
MAX_CAPABILITIES, CAPABILITY_VERSION_3 = 64, 0x20080522
PUNCH_HOLE, KEEP_SIZE = 2, 1  # of fallocate
M_MMAP_THRESHOLD = -3  # of mallopt

libc = ctypes.CDLL(None, use_errno=True)


def give_back_blocks(size: int) -> None:
    """Have malloc give blocks of `size` bytes and more back to Linux once they are free. Otherwise
    glibc keeps those of a flood, between smaller ones that stay."""
    libc.mallopt(M_MMAP_THRESHOLD, size)


def processor() -> str:
    """Return the model of the first processor, as Linux names it."""
    text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    fields = dict(re.findall(r"(.+?)\s*: (.*)", text))
    names = ("model name", "cpu family", "model", "stepping")
    return ", ".join(fields[name] for name in names if name in fields)


def checked(result: int) -> int:
    """Return the result of a libc call. Raises OSError if it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *args: int | bytes | None) -> int:
    """Make a system call by its number. Raises OSError."""
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return checked(libc.syscall(ctypes.c_long(number), *wide))


def prctl(option: int, value: int) -> None:
    """Set an option of this process. Raises OSError."""
    zero = ctypes.c_ulong(0)
    checked(libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def punch_hole(fd: int, end: int) -> None:
    """Free the disk space of a file before byte `end`. Raises OSError."""
    how = ctypes.c_int(PUNCH_HOLE | KEEP_SIZE)
    checked(libc.fallocate(fd, how, ctypes.c_long(0), ctypes.c_long(end)))


def drop_capabilities() -> None:
    """Drop all capabilities for good: no program that is executed later gets any."""
    for capability in range(MAX_CAPABILITIES):
        with contextlib.suppress(OSError):  # Linux has fewer, or the process may not drop any
            prctl(PR_CAPBSET_DROP, capability)
    header = CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4)
    syscall(CAPSET, header, bytes(24))


def peer_of(connected: socket.socket) -> tuple[int, int]:
    """Return the process at the other end: its pid, and a descriptor that is readable once it has
    ended.

    Raises:
        ProcessLookupError: it has ended.
        OSError: there is no descriptor left.
    """
    os_pid: int = struct.unpack("=iII", connected.getsockopt(*PEER_CREDENTIALS))[0]
    try:
        return os_pid, int.from_bytes(connected.getsockopt(*PEER_PIDFD), "little")
    except OSError as error:
        if error.errno == errno.EINVAL:  # as Linux before 6.16 reports it
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from error
        if error.errno != errno.ENOPROTOOPT:
            raise
    return os_pid, os.pidfd_open(os_pid)


def real(path: str) -> str:
    """Resolve a path as Linux does, following no more links than Linux.

    If the path does not exist, its folder is resolved and the name kept; "" if that does not exist
    either. Python's `realpath` follows every link, and a path of many links would take long.
    """
    folder, name = os.path.split(path)
    for found, rest in ((path, ""), (folder, name)):
        with contextlib.suppress(OSError, ValueError):
            fd = os.open(found, os.O_PATH | os.O_CLOEXEC)
            try:
                return str(Path(f"/proc/self/fd/{fd}").readlink() / rest)
            finally:
                os.close(fd)
        if name in ("", ".", ".."):
            break
    return ""
