"""The folder of a system: nobody else's, and one system's at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Any

from aios.syscalls.errors import BadInput, HomeBusy

OWN = (  # of what is in a home
    "agents", "audit", "index*", "journal*", "keys", "kv", "log", "run", "store*", "init.l*",
    "policy.json", "config.toml", "shell_history",
)  # fmt: skip


def make_private(home: Path) -> None:
    """Nobody else reads what is in there, nor puts anything in its place, whatever the folder and
    the umask were when it was made. The folder itself may have more in it.

    Raises:
        BadInput: it is another user's, or has what another user has put there.
    """
    shut(home.resolve(), 0o022)
    for name in OWN:
        for path in home.glob(name):
            shut(path, 0o077)


def shut(path: Path, taken: int) -> None:
    """Take rights of others. Raises BadInput where it belongs to neither this user nor root:
    settings say what runs as this user, and whoever owns a folder may put others there."""
    found = path.lstat()
    if found.st_uid not in (os.getuid(), 0):
        raise BadInput(
            f"{path} belongs to another user ({found.st_uid}), who could change what is done there",
            "set AIOS_HOME to a folder of your own, or take this one by chown",
        )
    is_own = found.st_uid == os.getuid() and not found.st_mode & stat.S_ISVTX
    if is_own and found.st_mode & taken and not path.is_symlink():
        path.chmod(stat.S_IMODE(found.st_mode) & ~taken)


def lock_home(home: Path) -> Any:
    """One system a home: held until init ends.

    Raises:
        BadInput: the home is another user's, or has what another user has put there.
        HomeBusy: another init holds it.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_private(home)
    for name in ("log", "run", "agents"):
        (home / name).mkdir(mode=0o700, exist_ok=True)
    lock = (home / "init.lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        raise HomeBusy(
            f"an AIOS runs in {home} (init {lock.read().strip() or '?'})",
            "stop it with `aios stop`, or set AIOS_HOME to another folder",
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
