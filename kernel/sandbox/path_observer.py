"""What an agent names to Linux that is not within its reach: files, folders, sockets, ports.

Landlock and the view refuse these and tell nobody, so seccomp has init look at each call that names
one before Linux does it. Nothing but what a process reads of itself is decided here: who changes
another path while it is looked at hides it from the record, and meets the walls all the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

HERE = -100  # AT_FDCWD
UNIX, INET, INET6 = 1, 2, 10
TEXT, ADDRESS = 4096, 128  # bytes of a path, and of an address, at most
STEPS = 256  # that are looked at of a path; what has more counts as one to the root
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
AT_A_GLANCE = os.O_PATH  # it is only pointed at: Landlock lets it, where the view shows it
NAMELESS = re.compile(r"\w+:\[")  # begins what is no path: a link to a pipe, a socket
MAGIC = ("/proc/self", "/proc/thread-self")  # lead elsewhere for whoever looks
OWN = frozenset({  # what Linux tells a process of itself
    "auxv", "cgroup", "cmdline", "comm", "environ", "io", "limits", "maps", "mountinfo", "mounts",
    "smaps", "smaps_rollup", "stat", "statm", "status",
})  # fmt: skip
NOT_READ = WRITES | os.O_PATH | os.O_DIRECTORY
INSIDE = ("", "")  # nothing to tell


class Named(NamedTuple):
    """A path among the arguments of a call, by their numbers."""

    path: int
    folder: int | None = None  # a descriptor of where it begins; None: the working folder
    flags: int | None = None  # as those of open; None: `how`
    how: int = os.O_WRONLY


ENTRY = os.O_WRONLY | os.O_NOFOLLOW  # of a folder; a symbolic link is not followed
OLD, OLD_AT, NEW_AT = Named(0, how=ENTRY), Named(1, 0, how=ENTRY), Named(3, 2, how=ENTRY)
PATHS: dict[str, tuple[Named, ...]] = {
    "open": (Named(0, flags=1),), "openat": (Named(1, 0, flags=2),), "creat": (Named(0),),
    "truncate": (Named(0),), "chdir": (Named(0, how=AT_A_GLANCE),),
    "execve": (Named(0, how=os.O_RDONLY),), "execveat": (Named(1, 0, how=os.O_RDONLY),),
    "mknod": (OLD,), "mknodat": (OLD_AT,),
    "mkdir": (OLD,), "rmdir": (OLD,), "unlink": (OLD,), "symlink": (Named(1, how=ENTRY),),
    "mkdirat": (OLD_AT,), "unlinkat": (OLD_AT,), "symlinkat": (Named(2, 1, how=ENTRY),),
    "rename": (OLD, Named(1, how=ENTRY)), "link": (OLD, Named(1, how=ENTRY)),
    "renameat": (OLD_AT, NEW_AT), "renameat2": (OLD_AT, NEW_AT), "linkat": (OLD_AT, NEW_AT),
    "chmod": (Named(0),), "fchmodat": (Named(1, 0),), "fchmodat2": (Named(1, 0),),
    "utime": (Named(0),), "utimes": (Named(0),), "futimesat": (Named(1, 0),),
    "utimensat": (Named(1, 0),), "chown": (Named(0),), "lchown": (Named(0, how=ENTRY),),
    "fchownat": (Named(1, 0),), "setxattr": (Named(0),), "lsetxattr": (Named(0, how=ENTRY),),
    "setxattrat": (Named(1, 0),), "removexattr": (Named(0),),
    "lremovexattr": (Named(0, how=ENTRY),), "removexattrat": (Named(1, 0),),
}  # fmt: skip
WATCHED = (*PATHS, "connect")
OPENS = ("open", "openat")


class Witness:
    """Of one agent, which reaches what Landlock lets it: files and folders by their real names."""

    def __init__(self, read: Iterable[str], write: Iterable[str], ports: Iterable[int]) -> None:
        self.write = set(write)
        self.read = self.write.union(read)
        self.ports = set(ports)

    def begin(self, os_pid: int, memory: int, root: int) -> None:
        """The agent is that process; what it has of its own memory and of its root it has opened
        itself, since from then on nobody but root may look into it."""
        self.os_pid, self.memory, self.root = os_pid, memory, root
        self.read.add(f"/proc/{os_pid}")

    def end(self) -> None:
        os.close(self.memory)
        os.close(self.root)

    def is_kin(self, whom: int) -> bool:
        """Whether that pid or thread, or with a minus all of a group, is the agent, or was started
        by it: it is the parent of what it has orphaned as well, and groups are within a session."""
        if whom < 0:
            return any(_group(os_pid) == -whom for os_pid in _family(self.os_pid))
        for _ in range(STEPS):
            if whom in (0, self.os_pid):
                return whom == self.os_pid
            whom = _status(whom, b"PPid:") if _process(whom) == whom else _process(whom)
        return False

    def out_of_reach(self, call: str, task: int, args: Sequence[int]) -> list[tuple[str, str]]:
        """What thread `task` names by a call with these arguments and does not reach, and what of
        a Reach it needs for that. Not what nobody can look at: it is gone, has no memory there, or
        is not for this user to look into."""
        found = []
        for where in PATHS.get(call, (None,)):
            with contextlib.suppress(OSError):
                found.append(self._path(task, where, args) if where else self._peer(task, args))
        return [
            (os.fsencode(said).decode(errors="backslashreplace"), needs)
            for said, needs in found if said
        ]  # fmt: skip

    def own(self, call: str, task: int, args: Sequence[int]) -> tuple[str, int]:
        """What thread `task` opens to read of its own process, and by which flags; "": it does
        something else. Landlock has let the agent's first process read that of itself alone: there
        were no others."""
        if call in OPENS:
            where = PATHS[call][0]
            path, flags = args[where.path], args[where.flags or 0]
            with contextlib.suppress(OSError):
                said = "" if flags & NOT_READ else _text(self._read(task, path, TEXT))
                if said.startswith("/proc/"):
                    real = resolved(self.root, task, said, follows=True)
                    folder, name = os.path.split(real)
                    if name in OWN and folder == f"/proc/{_process(task)}":
                        return real, flags
        return "", 0

    def _path(self, task: int, where: Named, args: Sequence[int]) -> tuple[str, str]:
        folder = HERE if where.folder is None else signed(args[where.folder])
        path = self._from_root(task, _text(self._read(task, args[where.path], TEXT)), folder)
        how = where.how if where.flags is None else args[where.flags]
        real = resolved(self.root, task, path, follows=not how & os.O_NOFOLLOW)
        if real.startswith(f"/proc/{_process(task)}/fd/"):  # a pipe or the like, which it has open
            return INSIDE
        glance = bool(how & AT_A_GLANCE)
        writes = bool(how & WRITES and not glance)
        if is_in(real, self.write if writes else self.read):
            return INSIDE
        if glance and _is_there(self.root, real):
            return INSIDE
        said = path if path == real else f"{real} by {path}"
        return said, "write" if writes else "read"

    def _peer(self, task: int, args: Sequence[int]) -> tuple[str, str]:
        """Of connect."""
        address = self._read(task, args[1], min(args[2], ADDRESS))
        family = int.from_bytes(address[:2], "little")
        if family in (INET, INET6):
            port = int.from_bytes(address[2:4], "big")
            return INSIDE if port in self.ports else (f"port {port}", "ports")
        if family != UNIX:
            return INSIDE
        if address[2:3] == b"\0":
            return f"@{os.fsdecode(address[3:])}", ""
        path = self._from_root(task, _text(address[2:]), HERE)
        real = resolved(self.root, task, path, follows=True)
        return INSIDE if is_in(real, self.read) else (path, "read")

    def _from_root(self, task: int, path: str, folder: int) -> str:
        if path.startswith("/"):
            return path
        start = "cwd" if folder == HERE else f"fd/{folder}"
        return os.path.join(os.readlink(f"/proc/{task}/{start}"), path)

    def _read(self, task: int, at: int, size: int) -> bytes:
        if at >= 1 << 63:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        is_own = os.path.exists(f"/proc/{self.os_pid}/task/{task}")
        if is_own and (data := os.pread(self.memory, size, at)):
            return data
        with open(
            f"/proc/{task}/mem", "rb", buffering=0
        ) as memory:  # of what it started, or became
            return os.pread(memory.fileno(), size, at)


def resolved(root: int, task: int, path: str, *, follows: bool) -> str:
    """Where an absolute path leads for `task`, below the folder `root` that is open, as far as
    there is something; with `follows` through a symbolic link at its end as well."""
    rest, real = path.split("/")[::-1], "/"
    for _ in range(STEPS):
        if not rest:
            return real
        name = rest.pop()
        if name in ("", "."):
            continue
        real = os.path.dirname(real) if name == ".." else os.path.join(real, name)
        if real in MAGIC:
            real = f"/proc/{_process(task)}"
        if name != ".." and (rest or follows) and (link := _link(root, real)):
            if NAMELESS.match(link) and real.startswith("/proc/"):
                return real
            rest += link.split("/")[::-1]
            real = "/" if link.startswith("/") else os.path.dirname(real)
    return "/"


def _link(root: int, path: str) -> str:
    """Where a symbolic link leads; "": there is none."""
    try:
        return os.readlink(path[1:], dir_fd=root)
    except OSError:
        return ""


def _process(task: int) -> int:
    """Whose thread it is."""
    return _status(task, b"Tgid:")


def _status(task: int, name: bytes) -> int:
    """A number in there, beside the name that the task has given itself, of any bytes; 0: it is
    gone."""
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{task}/status", "rb") as file,
    ):
        return next((int(line.split()[1]) for line in file if line.startswith(name)), 0)
    return 0


def _family(os_pid: int) -> list[int]:
    """It, and all that it has started and that is there."""
    found = [os_pid]
    for each in found:  # grows meanwhile
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{task}/children") as file:
                    found += map(int, file.read().split())
    return found


def _group(os_pid: int) -> int:
    """0: it is gone."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(os_pid)
    return 0


def _is_there(root: int, path: str) -> bool:
    try:
        os.stat(path[1:] or ".", dir_fd=root, follow_symlinks=False)
    except OSError:
        return False
    return True


def is_in(path: str, folders: set[str]) -> bool:
    """Whether an absolute path is one of them, or below one."""
    while path not in folders:
        if path == "/":
            return False
        path = os.path.dirname(path)
    return True


def _text(data: bytes) -> str:
    return os.fsdecode(data.partition(b"\0")[0])


def signed(value: int) -> int:
    """An `int` of C, as an argument of a call has it."""
    return (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
