"""The folder of a system: nobody else's, and one system's at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Any

from aios.syscalls.errors import HomeBusy

OWN = (  # of what is in a home
    "agents", "audit", "index*", "journal*", "keys", "kv", "log", "run", "store*", "init.l*",
    "policy.json", "config.toml", "shell_history",
)  # fmt: skip


def make_private(home: Path) -> None:
    """Nobody else reads what is in there, nor puts anything in its place, whatever the folder and
    the umask were when it was made. The folder itself may have more in it."""
    own = [path for name in OWN for path in home.glob(name) if not path.is_symlink()]
    for path, taken in (*((path, 0o077) for path in own), (home, 0o022)):
        found = path.stat()
        is_own = found.st_uid == os.getuid() and not found.st_mode & stat.S_ISVTX
        if is_own and found.st_mode & taken:
            path.chmod(stat.S_IMODE(found.st_mode) & ~taken)


def lock_home(home: Path) -> Any:
    """One system a home: held until init ends.

    Raises:
        HomeBusy: another init holds it.
    """
    for folder in (home, home / "log", home / "run", home / "agents"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_private(home)
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
