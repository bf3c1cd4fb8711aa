"""What a process sees of the file system: a root of its own with nothing in it but what is put
there, read-only unless said otherwise. So no socket, and no mode of a file, is within reach that
was not meant to be: Landlock leaves both alone.

Every agent's start goes through here: os.path takes a third of pathlib's time.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..lib.linux import ON_ARM, checked, libc, syscall

NEWNS, NEWUSER = 0x20000, 0x10000000
NOSUID, NODEV, BIND, RECURSIVE, PRIVATE, DETACH = 2, 4, 4096, 16384, 1 << 18, 2
PIVOT_ROOT = 41 if ON_ARM else 155
MOUNT_SETATTR, HERE, ALL_BELOW, READ_ONLY = 442, -100, 0x8000, 1
TOP = "/tmp"  # covered while the new root is made; any folder that every Linux has would do
OLD = "/.old"
STREAMS = {
    "/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}  # fmt: skip
SHARED_FILES = 1024  # that may be in memory


def enter(
    read: Iterable[str], write: Iterable[str], bare: str = "/", shared: tuple[str, int] = ("", 0)
) -> None:
    """From here on this process and all that it starts see these files and folders only, and of
    the folder `bare` nothing but that it is there. All are as `real` gives them; those that are not
    there are left out. In the folder `shared` they have that many bytes of memory.

    Raises:
        OSError: this Linux does not let it.
    """
    paths = dict.fromkeys(read, False) | dict.fromkeys(write, True)
    _separate()
    _mount("tmpfs", TOP, "tmpfs", NOSUID | NODEV, b"size=1m,mode=755")
    Path(TOP + OLD).mkdir()
    syscall(PIVOT_ROOT, TOP.encode(), (TOP + OLD).encode())
    os.chdir("/")
    for path in sorted(paths):  # a folder before what is in it
        _show(path, writable=paths[path])
    for path, target in STREAMS.items():
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(target, path)
    if shared[0] and not os.path.exists(shared[0]):
        os.makedirs(shared[0])
        options = b"mode=700,nr_inodes=%d,size=%d" % (SHARED_FILES, shared[1])
        _mount("tmpfs", shared[0], "tmpfs", NOSUID | NODEV, options)
    if Path(OLD + bare).is_dir():
        Path(bare).mkdir(parents=True, exist_ok=True)
    checked(libc.umount2(OLD.encode(), DETACH))
    Path(OLD).rmdir()
    _set_read_only("/")


def real(paths: Iterable[str]) -> Iterator[str]:
    """Where they really are, and every symbolic link on the way there."""
    for path in paths:
        step = path
        while step != "/":
            if os.path.islink(step):
                yield os.path.join(os.path.realpath(os.path.dirname(step)), os.path.basename(step))
            step = os.path.dirname(step)
        yield os.path.realpath(path)


def _separate() -> None:
    """Mounts of its own; without the right to that, as the root of a namespace of users."""
    if libc.unshare(NEWNS) < 0:
        uid, gid = os.getuid(), os.getgid()
        checked(libc.unshare(NEWNS | NEWUSER))
        for name, text in (
            ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"),
        ):  # fmt: skip
            Path("/proc/self", name).write_text(text)
    _mount(None, "/", None, RECURSIVE | PRIVATE)


def _show(path: str, *, writable: bool) -> None:
    found = OLD + path
    if os.path.islink(found):
        if not os.path.islink(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(os.readlink(found), path)
        return
    there = os.path.exists(path)  # a folder that is shown may have it
    if not os.path.exists(found) or (there and not writable):
        return
    if not there:
        os.makedirs(path if os.path.isdir(found) else os.path.dirname(path), exist_ok=True)
        if not os.path.isdir(found):
            os.close(os.open(path, os.O_CREAT))
    _mount(found, path, None, BIND | RECURSIVE)
    if not writable:
        _set_read_only(path, ALL_BELOW)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: bytes = b""
) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind)]
    checked(libc.mount(*texts, flags, data))


def _set_read_only(path: str, how: int = 0) -> None:
    syscall(MOUNT_SETATTR, HERE, path.encode(), how, struct.pack("=QQQQ", READ_ONLY, 0, 0, 0), 32)
