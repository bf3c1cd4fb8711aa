"""Ways to files that are not the agent's own."""

from __future__ import annotations

import os
from pathlib import Path

from probes.base import Probe, Targets, append, did, planted, read, refused_before

from aios.agents.sdk import connection as sdk


def by_symlink(t: Targets) -> bytes:
    os.symlink(t["secret"], "link")
    return read("link")


def by_hardlink(t: Targets) -> bytes:
    os.link(t["secret"], "hard")
    return read("hard")


def by_o_path(t: Targets) -> bytes:
    folder = os.open(os.path.dirname(t["secret"]), os.O_PATH)
    found = os.open(os.path.basename(t["secret"]), os.O_RDONLY, dir_fd=folder)
    return os.read(found, 64)


def by_reopening(t: Targets) -> bytes:
    found = os.open(t["secret"], os.O_PATH)
    return read(f"/proc/self/fd/{found}")


def by_device(_: Targets) -> bytes:
    os.mknod("disk", 0o600 | 0o060000, os.makedev(7, 0))
    return read("disk")


def by_fchdir(t: Targets) -> list[str]:
    os.fchdir(os.open("/", os.O_PATH))
    os.chdir(".." + os.path.dirname(t["secret"]))
    return os.listdir(".")


def by_chroot(t: Targets) -> bytes:
    os.mkdir("jail")
    os.chroot("jail")
    for _ in range(20):
        os.chdir("..")
    os.chroot(".")
    return read(t["secret"])


def moved_in(t: Targets) -> bytes:
    os.rename(t["loose"], "stolen")
    os.rename("stolen", t["loose"])
    return b"moved"


def moved_out(t: Targets) -> bool:
    Path("mine").write_text("x")
    os.rename("mine", t["folder"] + "/planted")
    os.unlink(t["folder"] + "/planted")
    return True


FILES: dict[str, Probe] = {
    "read by its path": lambda t: read(t["secret"]),
    "read with ..": lambda t: read(os.getcwd() + "/.." * 20 + t["secret"]),
    "read by a symlink": by_symlink,
    "read by a hard link": by_hardlink,
    "read through /proc/self/root": lambda t: read("/proc/self/root" + t["secret"]),
    "read through /proc/self/cwd": lambda t: read("/proc/self/cwd" + "/.." * 20 + t["secret"]),
    "read through init's root": lambda t: read(f"/proc/{t['init']}/root" + t["secret"]),
    "read through a sibling's root": lambda t: read(f"/proc/{t['sibling']}/root" + t["secret"]),
    "read by O_PATH and openat": by_o_path,
    "read by opening an O_PATH again": by_reopening,
    "read by a device made": by_device,
    "read after fchdir": by_fchdir,
    "read after chroot": by_chroot,
    "list a folder": lambda t: os.listdir(t["folder"]),
    "move a file in": moved_in,
    "move a file out": moved_out,
    "truncate": lambda t: did(os.truncate, t["loose"], 3),
    "write": lambda t: append(t["loose"]),
    "create": lambda t: planted(t["folder"]),
    "change a mode": lambda t: did(os.chmod, t["loose"], 0o600),
    "change an owner": lambda t: did(os.chown, t["loose"], os.getuid(), -1),
    "change times": lambda t: did(os.utime, t["loose"]),
    "change an attribute": lambda t: did(os.setxattr, t["loose"], "user.x", b"x"),
    "open by handle": refused_before(304, 265, -100, bytes(64), 0),
    "its program": lambda t: append(__file__),
    "the SDK": lambda t: append(sdk.__file__),
    "Python's library": lambda t: append(os.__file__),
    "the system's settings": lambda t: planted("/etc"),
    "/etc/shadow": lambda t: read("/etc/shadow"),
    "init's lock": lambda t: append(t["home"] + "/init.lock"),
    "the store": lambda t: os.listdir(t["home"] + "/store"),
    "the journal": lambda t: os.listdir(t["home"] + "/journal"),
    "the keys": lambda t: os.listdir(t["home"] + "/keys"),
    "others' logs": lambda t: os.listdir(t["home"] + "/log"),
    "a sibling's folder": lambda t: os.listdir(t["sibling_folder"]),
    "a sibling's file": lambda t: read(t["sibling_folder"] + "/note"),
    "into a sibling's folder": lambda t: append(t["sibling_folder"] + "/note"),
}  # fmt: skip
