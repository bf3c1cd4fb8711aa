"""The common base of all probes."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

Targets = dict[str, Any]
Probe = Callable[[Targets], Any]
libc = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"


def call(x86: int, arm: int, *args: Any) -> int:
    """A system call by number. Raises OSError."""
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = libc.syscall(ctypes.c_long(arm if ARM else x86), *wide)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(64)


def opens(path: str, how: int = os.O_RDONLY) -> bool:
    os.close(os.open(path, how))
    return True


def append(path: str) -> bool:
    return opens(path, os.O_WRONLY | os.O_APPEND)


def did(act: Callable[..., object], *args: Any) -> bool:
    act(*args)
    return True


def planted(folder: str) -> bool:
    path = Path(folder, "aios-probe")
    path.touch()
    path.unlink()
    return True


def refused_before(x86: int, arm: int, *args: Any) -> Probe:
    """Got where the call came through to Linux, and was found wrong there."""

    def probe(_: Targets) -> bool:
        try:
            call(x86, arm, *args)
        except OSError as error:
            if error.errno in (1, 38):  # EPERM, ENOSYS
                raise
        return True

    return probe
