"""Find the files, folders, sockets and ports that an agent names to Linux and was not granted.

Landlock and the mount namespace refuse these without a record, so seccomp has init look at each
call that names one before Linux does it. Only reads of a process's own data in /proc are decided
here. A thread that changes another path while init looks hides it from the record, but Landlock and
the mount namespace refuse it all the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

AT_FDCWD = -100
UNIX, INET, INET6 = 1, 2, 10
MAX_PATH_BYTES, MAX_ADDRESS_BYTES = 4096, 128
MAX_PATH_STEPS = 256  # a path with more components resolves to the root
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
LOOKUP = os.O_PATH  # Landlock allows this wherever the path is mounted
PIPE_OR_SOCKET = re.compile(r"\w+:\[")  # target of a link in /proc that is no path
PROC_SELF_LINKS = ("/proc/self", "/proc/thread-self")  # differ for each process
OWN_PROC_FILES = frozenset({
    "auxv", "cgroup", "cmdline", "comm", "environ", "io", "limits", "maps", "mountinfo", "mounts",
    "smaps", "smaps_rollup", "stat", "statm", "status",
})  # fmt: skip
NOT_READ = WRITES | os.O_PATH | os.O_DIRECTORY
GRANTED = ("", "")


class PathArgument(NamedTuple):
    """A path among the arguments of a call. The fields are positions of arguments."""

    path: int
    folder: int | None = None  # the descriptor of its start; None: the working folder
    flags: int | None = None  # the flags, as for open; None: they are `how`
    how: int = os.O_WRONLY


ENTRY = os.O_WRONLY | os.O_NOFOLLOW  # change an entry of a folder: links are not followed
OLD, OLD_AT, NEW_AT = (
    PathArgument(0, how=ENTRY),
    PathArgument(1, 0, how=ENTRY),
    PathArgument(3, 2, how=ENTRY),
)
PATH_ARGUMENTS: dict[str, tuple[PathArgument, ...]] = {
    "open": (PathArgument(0, flags=1),),
    "openat": (PathArgument(1, 0, flags=2),),
    "creat": (PathArgument(0),),
    "truncate": (PathArgument(0),),
    "chdir": (PathArgument(0, how=LOOKUP),),
    "execve": (PathArgument(0, how=os.O_RDONLY),),
    "execveat": (PathArgument(1, 0, how=os.O_RDONLY),),
    "mknod": (OLD,),
    "mknodat": (OLD_AT,),
    "mkdir": (OLD,),
    "rmdir": (OLD,),
    "unlink": (OLD,),
    "symlink": (PathArgument(1, how=ENTRY),),
    "mkdirat": (OLD_AT,),
    "unlinkat": (OLD_AT,),
    "symlinkat": (PathArgument(2, 1, how=ENTRY),),
    "rename": (OLD, PathArgument(1, how=ENTRY)),
    "link": (OLD, PathArgument(1, how=ENTRY)),
    "renameat": (OLD_AT, NEW_AT),
    "renameat2": (OLD_AT, NEW_AT),
    "linkat": (OLD_AT, NEW_AT),
    "chmod": (PathArgument(0),),
    "fchmodat": (PathArgument(1, 0),),
    "fchmodat2": (PathArgument(1, 0),),
    "utime": (PathArgument(0),),
    "utimes": (PathArgument(0),),
    "futimesat": (PathArgument(1, 0),),
    "utimensat": (PathArgument(1, 0),),
    "chown": (PathArgument(0),),
    "lchown": (PathArgument(0, how=ENTRY),),
    "fchownat": (PathArgument(1, 0),),
    "setxattr": (PathArgument(0),),
    "lsetxattr": (PathArgument(0, how=ENTRY),),
    "setxattrat": (PathArgument(1, 0),),
    "removexattr": (PathArgument(0),),
    "lremovexattr": (PathArgument(0, how=ENTRY),),
    "removexattrat": (PathArgument(1, 0),),
}
WATCHED_CALLS = (*PATH_ARGUMENTS, "connect")
OPEN_CALLS = ("open", "openat")


class PathObserver:
    """Compare the paths that one agent names with its grants, which hold real paths."""

    def __init__(self, read: Iterable[str], write: Iterable[str], ports: Iterable[int]) -> None:
        self.write = set(write)
        self.read = self.write.union(read)
        self.ports = set(ports)

    def attach(self, os_pid: int, memory: int, root: int) -> None:
        """Watch the process `os_pid`.

        `memory` and `root` are descriptors of its own memory and root. The agent opened them
        itself, since from then on only root may look into it.
        """
        self.os_pid, self.memory, self.root = os_pid, memory, root
        self.read.add(f"/proc/{os_pid}")

    def detach(self) -> None:
        """Close the agent's descriptors."""
        os.close(self.memory)
        os.close(self.root)

    def is_descendant(self, whom: int) -> bool:
        """Tell whether a pid or thread, or with a minus a whole group, is the agent or its
        descendant.

        An agent is also the parent of its orphans, and a group is always within one session.
        """
        if whom < 0:
            return any(_group(os_pid) == -whom for os_pid in _family(self.os_pid))
        for _ in range(MAX_PATH_STEPS):
            if whom in (0, self.os_pid):
                return whom == self.os_pid
            whom = _status(whom, b"PPid:") if _process(whom) == whom else _process(whom)
        return False

    def not_granted(self, call: str, task: int, args: Sequence[int]) -> list[tuple[str, str]]:
        """Return each object that `task` names by this call and was not granted, with the missing
        grant.

        Objects that init cannot inspect are left out: the thread is gone, has no memory there, or
        is another user's.
        """
        found = []
        for where in PATH_ARGUMENTS.get(call, (None,)):
            with contextlib.suppress(OSError):
                found.append(self._path(task, where, args) if where else self._peer(task, args))
        return [
            (os.fsencode(said).decode(errors="backslashreplace"), needs)
            for said, needs in found if said
        ]  # fmt: skip

    def own_proc_file(self, call: str, task: int, args: Sequence[int]) -> tuple[str, int]:
        """Return a file in /proc about the caller's own process that it opens to read, and the
        flags.

        The path is "" for any other call. Landlock granted the agent's first process these files
        about itself alone: there were no other processes then.
        """
        if call in OPEN_CALLS:
            where = PATH_ARGUMENTS[call][0]
            path, flags = args[where.path], args[where.flags or 0]
            with contextlib.suppress(OSError):
                said = "" if flags & NOT_READ else _text(self._read(task, path, MAX_PATH_BYTES))
                if said.startswith("/proc/"):
                    real = resolved(self.root, task, said, follows=True)
                    folder, name = os.path.split(real)
                    if name in OWN_PROC_FILES and folder == f"/proc/{_process(task)}":
                        return real, flags
        return "", 0

    def _path(self, task: int, where: PathArgument, args: Sequence[int]) -> tuple[str, str]:
        """Return the path that one argument names and the missing grant, or GRANTED."""
        folder = AT_FDCWD if where.folder is None else signed(args[where.folder])
        path = self._from_root(
            task, _text(self._read(task, args[where.path], MAX_PATH_BYTES)), folder
        )
        how = where.how if where.flags is None else args[where.flags]
        real = resolved(self.root, task, path, follows=not how & os.O_NOFOLLOW)
        if real.startswith(f"/proc/{_process(task)}/fd/"):  # a pipe or the like that it has open
            return GRANTED
        looks_up = bool(how & LOOKUP)
        writes = bool(how & WRITES and not looks_up)
        if is_in(real, self.write if writes else self.read):
            return GRANTED
        if looks_up and _is_there(self.root, real):
            return GRANTED
        said = path if path == real else f"{real} by {path}"
        return said, "write" if writes else "read"

    def _peer(self, task: int, args: Sequence[int]) -> tuple[str, str]:
        """Return the address that a connect names and the missing grant, or GRANTED."""
        address = self._read(task, args[1], min(args[2], MAX_ADDRESS_BYTES))
        family = int.from_bytes(address[:2], "little")
        if family in (INET, INET6):
            port = int.from_bytes(address[2:4], "big")
            return GRANTED if port in self.ports else (f"port {port}", "ports")
        if family != UNIX:
            return GRANTED
        if address[2:3] == b"\0":
            return f"@{os.fsdecode(address[3:])}", ""
        path = self._from_root(task, _text(address[2:]), AT_FDCWD)
        real = resolved(self.root, task, path, follows=True)
        return GRANTED if is_in(real, self.read) else (path, "read")

    def _from_root(self, task: int, path: str, folder: int) -> str:
        if path.startswith("/"):
            return path
        start = "cwd" if folder == AT_FDCWD else f"fd/{folder}"
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
    """Resolve an absolute path as `task` would, below the open folder `root`.

    Components that do not exist are kept. With `follows` a symbolic link at the end is followed
    too.
    """
    rest, real = path.split("/")[::-1], "/"
    for _ in range(MAX_PATH_STEPS):
        if not rest:
            return real
        name = rest.pop()
        if name in ("", "."):
            continue
        real = os.path.dirname(real) if name == ".." else os.path.join(real, name)
        if real in PROC_SELF_LINKS:
            real = f"/proc/{_process(task)}"
        if name != ".." and (rest or follows) and (link := _link(root, real)):
            if PIPE_OR_SOCKET.match(link) and real.startswith("/proc/"):
                return real
            rest += link.split("/")[::-1]
            real = "/" if link.startswith("/") else os.path.dirname(real)
    return "/"


def _link(root: int, path: str) -> str:
    """Return the target of a symbolic link, or "" if there is none."""
    try:
        return os.readlink(path[1:], dir_fd=root)
    except OSError:
        return ""


def _process(task: int) -> int:
    """Return the pid of the process that `task` is a thread of."""
    return _status(task, b"Tgid:")


def _status(task: int, name: bytes) -> int:
    """Return a number from a task's status file, or 0 if the task is gone.

    The task's own name, in the same file, can have any bytes, also ones that look like a line.
    """
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{task}/status", "rb") as file,
    ):
        return next((int(line.split()[1]) for line in file if line.startswith(name)), 0)
    return 0


def _family(os_pid: int) -> list[int]:
    """List a process and all its descendants that still run."""
    found = [os_pid]
    for each in found:  # the list grows meanwhile
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{task}/children") as file:
                    found += map(int, file.read().split())
    return found


def _group(os_pid: int) -> int:
    """Return the process group, or 0 if the process is gone."""
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
    """Tell whether an absolute path is one of `folders`, or below one."""
    while path not in folders:
        if path == "/":
            return False
        path = os.path.dirname(path)
    return True


def _text(data: bytes) -> str:
    return os.fsdecode(data.partition(b"\0")[0])


def signed(value: int) -> int:
    """Read an argument of a call as a C `int`."""
    return (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
