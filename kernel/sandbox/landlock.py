"""Landlock: limit the files that a process may reach, its TCP ports, and whom it may signal.

This calls Linux directly, by three system calls: the packages that wrap it, `landlock` and
`py-landlock`, are pre-releases and know neither all of ABI 6 nor rules on a descriptor.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from ..lib.linux import syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # on every architecture
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many rights on files each ABI has
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
TRUNCATE, IOCTL = 1 << 14, 1 << 15
FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
READ = EXECUTE | READ_FILE | READ_DIR
WRITE = ~(MAKE_CHAR | MAKE_SOCK | MAKE_BLOCK | IOCTL)  # the rights on an own folder
BIND_TCP, CONNECT_TCP = 1, 2
SCOPES = 3  # abstract sockets and signals
PATH_BENEATH, NET_PORT = 1, 2  # kinds of rules


def abi() -> int:
    """Return the version of Landlock that this Linux has, or 0 for none."""
    try:
        return syscall(CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def restrict(read: Iterable[str], write: Iterable[str], ports: Iterable[int]) -> None:
    """Limit this process and all that it starts, for good, as far as the ABI goes.

    They reach only these files and folders, connect only to these TCP ports, and signal and trace
    only themselves. Paths that do not exist are left out. Needs `no_new_privs`.

    Raises:
        OSError: there is no Landlock.
    """
    version = abi()
    files = (1 << FILE_RIGHTS[min(version, 5)]) - 1 if version else 0
    net = BIND_TCP | CONNECT_TCP if version >= 4 else 0
    rules = struct.pack("=QQQ", files, net, SCOPES if version >= 6 else 0)
    ruleset = syscall(CREATE_RULESET, rules, 8 if version < 4 else 16 if version < 6 else 24, 0)
    for paths, rights in ((read, READ), (write, WRITE)):
        for path in paths:
            _allow(ruleset, path, rights & files)
    for port in ports if net else ():
        syscall(ADD_RULE, ruleset, NET_PORT, struct.pack("=QQ", CONNECT_TCP, port), 0)
    syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Add `rights` on `path` to the ruleset, unless the path does not exist."""
    try:
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return
    if not stat.S_ISDIR(os.fstat(found).st_mode):
        rights &= FILE_ONLY
    syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, found), 0)
    os.close(found)
