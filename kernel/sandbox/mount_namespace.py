"""Give a process a root of its own that holds only the files it was granted, read-only by default.

Landlock controls neither sockets nor the modes of files. Here both are out of reach unless they are
mounted. Every agent's start goes through this module, so it uses os.path, which takes a third of
pathlib's time.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..lib.linux import ON_ARM, checked, libc, syscall

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
NOSUID, NODEV, BIND, RECURSIVE, PRIVATE, DETACH = 2, 4, 4096, 16384, 1 << 18, 2
PIVOT_ROOT = 41 if ON_ARM else 155
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
NEW_ROOT = "/tmp"  # mounted over until it is the root; any existing folder would do
OLD_ROOT = "/.old"
STREAMS = {
    "/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}  # fmt: skip
MAX_SHM_FILES = 1024  # files that an agent may have in shared memory


def enter(
    read: Iterable[str], write: Iterable[str], bare: str = "/", shared: tuple[str, int] = ("", 0)
) -> None:
    """Move this process, and all that it starts, into a root with only these files and folders.

    Paths have to come from `real`; those that do not exist are left out. The folder `bare` exists
    there, but is empty. `shared` is a folder, and how many bytes of shared memory it can hold.

    Raises:
        OSError: this Linux does not allow it.
    """
    paths = dict.fromkeys(read, False) | dict.fromkeys(write, True)
    _unshare()
    _mount("tmpfs", NEW_ROOT, "tmpfs", NOSUID | NODEV, b"size=1m,mode=755")
    Path(NEW_ROOT + OLD_ROOT).mkdir()
    syscall(PIVOT_ROOT, NEW_ROOT.encode(), (NEW_ROOT + OLD_ROOT).encode())
    os.chdir("/")
    for path in sorted(paths):  # a folder comes before its contents
        _bind(path, writable=paths[path])
    for path, target in STREAMS.items():
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(target, path)
    if shared[0] and not os.path.exists(shared[0]):
        os.makedirs(shared[0])
        options = b"mode=700,nr_inodes=%d,size=%d" % (MAX_SHM_FILES, shared[1])
        _mount("tmpfs", shared[0], "tmpfs", NOSUID | NODEV, options)
    if Path(OLD_ROOT + bare).is_dir():
        Path(bare).mkdir(parents=True, exist_ok=True)
    checked(libc.umount2(OLD_ROOT.encode(), DETACH))
    Path(OLD_ROOT).rmdir()
    _set_read_only("/")


def real(paths: Iterable[str]) -> Iterator[str]:
    """Yield the real path of each of `paths`, and every symbolic link on the way there."""
    for path in paths:
        step = path
        while step != "/":
            if os.path.islink(step):
                yield os.path.join(os.path.realpath(os.path.dirname(step)), os.path.basename(step))
            step = os.path.dirname(step)
        yield os.path.realpath(path)


def _unshare() -> None:
    """Enter a new mount namespace; without the right to that, as root of a new user namespace."""
    if libc.unshare(CLONE_NEWNS) < 0:
        uid, gid = os.getuid(), os.getgid()
        checked(libc.unshare(CLONE_NEWNS | CLONE_NEWUSER))
        for name, text in (
            ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"),
        ):  # fmt: skip
            Path("/proc/self", name).write_text(text)
    _mount(None, "/", None, RECURSIVE | PRIVATE)


def _bind(path: str, *, writable: bool) -> None:
    """Mount what the old root has at `path`, or copy a symbolic link."""
    found = OLD_ROOT + path
    if os.path.islink(found):
        if not os.path.islink(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(os.readlink(found), path)
        return
    there = os.path.exists(path)  # it may be inside a folder that is mounted already
    if not os.path.exists(found) or (there and not writable):
        return
    if not there:
        os.makedirs(path if os.path.isdir(found) else os.path.dirname(path), exist_ok=True)
        if not os.path.isdir(found):
            os.close(os.open(path, os.O_CREAT))
    _mount(found, path, None, BIND | RECURSIVE)
    if not writable:
        _set_read_only(path, AT_RECURSIVE)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: bytes = b""
) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind)]
    checked(libc.mount(*texts, flags, data))


def _set_read_only(path: str, how: int = 0) -> None:
    syscall(
        MOUNT_SETATTR, AT_FDCWD, path.encode(), how, struct.pack("=QQQQ", READ_ONLY, 0, 0, 0), 32
    )
