"""The folder of a system, private to its user and locked by one system at a time."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from aios.syscalls.errors import BadInput, HomeBusy

from ..config import Config

PRIVATE_NAMES = (
    "agents", "audit", "index*", "journal*", "keys", "kv", "log", "run", "store*", "init.l*",
    "policy.json", "config.toml", "shell_history",
)  # fmt: skip


def make_private(home: Path) -> None:
    """Take away the rights of other users in a home, whatever the umask was when it was made.

    The folder itself may hold other files; they keep their rights.

    Raises:
        BadInput: the home or what is in it is another user's.
    """
    revoke(home.resolve(), 0o022)
    for name in PRIVATE_NAMES:
        for path in home.glob(name):
            revoke(path, 0o077)


def revoke(path: Path, taken: int) -> None:
    """Remove the mode bits `taken` from a path.

    Settings say what runs as this user, and the owner of a folder can replace them.

    Raises:
        BadInput: the path belongs to neither this user nor root.
    """
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
    """Lock a home until init ends.

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


def open_ring(config: Config) -> int | None:
    """Have the data keys written to a memfd, and return that. It is for the kernel and the core.

    init does not read the keys, since agents are forked out of it. Returns -1 where the home is not
    encrypted, and None where keyring.py has reported an error.
    """
    key_file = os.environ.pop("AIOS_KEY_FILE", None)
    if not config.encrypt and not (config.path / "keys" / "data.json").exists():
        return -1
    ring = os.memfd_create("aios-keys")
    settings = msgspec.json.encode(config).decode()
    argv = [sys.executable, "-m", "aios.kernel.init.keyring", "open", settings]
    theirs = os.environ | ({} if key_file is None else {"AIOS_KEY_FILE": key_file})
    opened = subprocess.run(argv, stdout=ring, env=theirs, check=False).returncode == 0
    return ring if opened else None
