"""File operations that survive a power cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path

ZEROS = bytes(1 << 20)


def write_zeros(fd: int, start: int, end: int) -> None:
    """Write zeros from byte `start` to before `end`.

    Data that is written there later has no metadata to sync, and cannot run out of disk.

    Raises:
        OSError: there is no room; some may be written.
    """
    at = start
    while at < end:
        written = os.pwrite(fd, ZEROS[: end - at], at)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        at += written


def make_ahead(path: Path, size: int) -> int:
    """Create a file of zeros on the disk, and return its descriptor.

    Raises:
        OSError: there is no room; there is no file then.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_zeros(fd, 0, size)
        os.fdatasync(fd)
    except OSError:
        os.close(fd)
        path.unlink()
        raise
    sync_folder(path.parent)
    return fd


def replace(path: Path, data: bytes, temp: Path | None = None) -> None:
    """Replace the contents of a file, for this user alone. After a crash it is either old or new.
    The new file is written as `temp`, beside the old one unless given.

    Raises:
        OSError: the file is as it was before.
    """
    temp = temp or path.with_suffix(".new")
    try:
        with open(temp, "wb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temp.rename(path)
    except OSError:
        temp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
