"""Modes, owners and times of files: an agent's own, and others that it has its hands on."""

from __future__ import annotations

import os
from pathlib import Path

from probes.base import Probe, Targets, call, did


def own() -> int:
    return os.open("own", os.O_RDWR | os.O_CREAT, 0o644)


def mode_of_own(_: Targets) -> int:
    found = own()
    os.fchmod(found, 0o600)
    os.chmod("own", 0o640)
    call(452, 452, -100, b"own", 0o750, 0)
    return os.fstat(found).st_mode & 0o777


def owner_of_own(_: Targets) -> int:
    found, uid, gid = own(), os.getuid(), os.getgid()
    os.fchown(found, uid, gid)
    os.chown("own", -1, -1)
    os.lchown("own", uid, -1)
    os.chown(os.path.basename("own"), -1, gid, dir_fd=os.open(".", os.O_RDONLY))
    return os.fstat(found).st_uid == uid


def times_of_own(_: Targets) -> int:
    found = own()
    os.utime(found, (1, 2))
    return int(os.fstat(found).st_mtime)


def as_it_is(found: int) -> bool:
    return did(os.fchmod, found, os.fstat(found).st_mode & 0o7777)


def created(path: str, mode: int) -> int:
    found = os.open(path, os.O_WRONLY | os.O_CREAT, mode)
    os.unlink(path)
    return found


def to_setid(mode: int) -> bool:
    found = own()
    os.fchmod(found, mode)
    return True


OWN: dict[str, Probe] = {
    "mode of its own": mode_of_own, "owner of its own": owner_of_own,
    "times of its own": times_of_own,
}  # fmt: skip
MODES: dict[str, Probe] = {
    "mode of its program by descriptor": lambda t: as_it_is(os.open(__file__, os.O_RDONLY)),
    "mode of its program": lambda t: did(os.chmod, __file__, Path(__file__).stat().st_mode),
    "owner of its program": lambda t: did(os.chown, __file__, -1, os.getgid()),
    "mode of a device": lambda t: did(os.chmod, "/dev/null", Path("/dev/null").stat().st_mode),
    "mode of stdin": lambda t: as_it_is(0),
    "another owner": lambda t: did(os.fchown, own(), 65534, -1),
    "another group": lambda t: did(os.fchown, own(), -1, 65534),
    "a setuid program of its own": lambda t: to_setid(0o4755),
    "a setgid program of its own": lambda t: to_setid(0o2755),
    "a setuid program made": lambda t: created("setuid", 0o4755),
    "a setgid program made": lambda t: created("setgid", 0o2755),
    "a setuid file by mknod": lambda t: did(os.mknod, "setuid", 0o104755),
    "a setuid program without a name": lambda t: os.open(".", os.O_TMPFILE | os.O_RDWR, 0o4755),
}  # fmt: skip
