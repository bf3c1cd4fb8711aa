"""Seccomp without the other mechanisms, as where Linux forbids these."""

from __future__ import annotations

import errno
import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from probes.base import call as linux

from aios.kernel.sandbox import seccomp
from aios.kernel.sandbox.path_observer import PathObserver
from aios.kernel.sandbox.sandbox import drop_privileges, seccomp_filter
from aios.kernel.sandbox.seccomp_notify import SeccompNotifications, send_listener


def test_without_a_view_nobody_changes_modes_and_it_is_told(tmp_path: Path) -> None:
    """Where Linux forbids mounts, seccomp alone keeps an agent from it."""
    path = tmp_path / "file"
    path.touch(mode=0o644)

    def change() -> int:
        try:
            path.chmod(0o777)
        except PermissionError:
            return 7
        return 0

    code, told = behind_seccomp(change, [str(tmp_path)], processes=False, signals=True)
    assert code == 7
    assert path.stat().st_mode & 0o777 == 0o644
    assert {call for call, *_ in told} <= {"chmod", "fchmodat"}
    assert told


def behind_seccomp(
    run: Callable[[], int], write: list[str], *, processes: bool, signals: bool
) -> tuple[int, list[tuple[str, ...]]]:
    """Return the exit code of a process that has seccomp alone, and what was reported of it."""
    told: list[tuple[str, ...]] = []
    with selectors.DefaultSelector() as selector:
        notifications = SeccompNotifications(selector, seccomp.observed_calls(modes=False))
        channel = notifications.expect(PathObserver([], write, []), lambda *said: told.append(said))
        eyes = os.open("/proc/self/mem", os.O_RDONLY), os.open("/", os.O_PATH)
        os_pid = os.fork()
        if os_pid == 0:
            os.setsid()
            drop_privileges()
            code = seccomp_filter(network=False, processes=processes, modes=False, signals=signals)
            code += seccomp.assemble(seccomp.signal_rules(os.getpid()), notify=True)
            send_listener(channel.fileno(), seccomp.install(code, listen=True), *eyes)
            try:
                os._exit(run())
            except BaseException:  # noqa: BLE001 (nothing of the test may run on in there)
                os._exit(99)
        channel.close()
        for fd in eyes:
            os.close(fd)
        while selector.get_map():
            for key, _ in selector.select(10):
                key.data()
    return os.waitstatus_to_exitcode(os.waitpid(os_pid, 0)[1]), told


def refused(way: Callable[[int], object], whom: int) -> int:
    """Return the number of the error that Linux answers with, 0 if there is none."""
    try:
        way(whom)
    except OSError as error:
        return error.errno or 0
    return 0


def test_signals_reach_what_an_agent_started_and_nobody_else_on_any_linux() -> None:
    """Without Landlock, which controls signals from Linux 6.12 on."""
    other, by_descriptor = os.getpid(), os.pidfd_open(os.getpid())
    own, theirs = socket.socketpair()
    ways: dict[str, Callable[[int], object]] = {
        "kill": lambda whom: os.kill(whom, 0),
        "group": lambda whom: os.killpg(os.getpgid(whom), 0),
        "tgkill": lambda whom: linux(234, 131, whom, whom, 0),
        "tkill": lambda whom: linux(200, 130, whom, 0),
        "pidfd_open": os.pidfd_open,
    }
    ways_to_others: dict[str, Callable[[int], object]] = {
        "everybody": lambda _: os.kill(-1, 0),
        "pidfd": lambda _: signal.pidfd_send_signal(by_descriptor, 0),
        "F_SETOWN": lambda whom: fcntl.fcntl(own, fcntl.F_SETOWN, whom),
        "FIOSETOWN": lambda whom: fcntl.ioctl(own, 0x8901, struct.pack("i", whom)),
    }

    def tries() -> int:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            grandchild = os.fork()
            if not grandchild:
                signal.pause()
            os._exit(0)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # its group has the orphan alone
        wrong = [name for name, way in ways.items() if refused(way, other) != errno.EPERM]
        wrong += [
            name for name, way in ways_to_others.items() if refused(way, other) != errno.EPERM
        ]
        wrong += [f"own {name}" for name, way in ways.items() if refused(way, child)]
        wrong += ["itself"] if refused(ways["tkill"], threading.get_native_id()) else []
        gone = 2**22 - 1
        for nobody in (gone, -gone):  # a pid, a group
            wrong += [f"{nobody}"] if refused(ways["kill"], nobody) != errno.ESRCH else []
        os.killpg(child, signal.SIGKILL)
        print(wrong, file=sys.stderr)
        return len(wrong)

    code, told = behind_seccomp(tries, [], processes=True, signals=False)
    own.close()
    theirs.close()
    os.close(by_descriptor)
    assert code == 0
    assert {call for call, *_ in told} == {
        "kill", "tgkill", "tkill", "pidfd_open", "pidfd_send_signal", "fcntl", "ioctl",
    }  # fmt: skip
