"""The system calls of Linux that Python has no function for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

ON_ARM = platform.machine() == "aarch64"
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CAPSET = 91 if ON_ARM else 126
CAPABILITIES, CAPABILITIES_V3 = 64, 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    """What a call of libc returned. Raises OSError where it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *args: int | bytes | None) -> int:
    """Raises OSError."""
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return checked(libc.syscall(ctypes.c_long(number), *wide))


def prctl(option: int, value: int) -> None:
    """Raises OSError."""
    zero = ctypes.c_ulong(0)
    checked(libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def drop_capabilities() -> None:
    """All of them, for good: no program that is executed has any again."""
    for capability in range(CAPABILITIES):
        with contextlib.suppress(OSError):  # there are fewer, or it has no right to any
            prctl(PR_CAPBSET_DROP, capability)
    header = CAPABILITIES_V3.to_bytes(4, "little") + bytes(4)
    syscall(CAPSET, header, bytes(24))
