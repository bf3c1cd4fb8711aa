"""Starting and ending a system: init is a program like any other to the shell."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from aios.agents import Aios, connect
from aios.syscalls.errors import AiosError, BadInput, DiskFull, KernelGone, TimedOut, from_wire
from aios.syscalls.home import CERTIFICATE_VARIABLES, INIT
from aios.syscalls.kernel import Status

POLL_S = 0.05  # between two looks at a system that is starting
START_TIMEOUT_S = 300.0  # for a model to load
TERM_INTERVAL_S = 0.2  # between two TERMs
PR_SET_PDEATHSIG = 1
OPEN = frozenset({  # the variables of the environment that agents have as well, all by name
    "PATH", "LANG", "LANGUAGE", "TZ", "TZDIR", "USER", "LOGNAME", "SHELL", "TERM", "COLORTERM",
    "NO_COLOR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LC_ALL", "LC_COLLATE", "LC_CTYPE",
    "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", *CERTIFICATE_VARIABLES,
    *("PYTHON" + name for name in (
        "ASYNCIODEBUG", "CASEOK", "DEBUG", "DEVMODE", "DONTWRITEBYTECODE", "FAULTHANDLER",
        "HASHSEED", "HOME", "INTMAXSTRDIGITS", "IOENCODING", "MALLOC", "NODEBUGRANGES",
        "NOUSERSITE", "OPTIMIZE", "PATH", "PLATLIBDIR", "PYCACHEPREFIX", "SAFEPATH", "TRACEMALLOC",
        "UNBUFFERED", "USERBASE", "UTF8", "VERBOSE", "WARNINGS",
    )),
    "AIOS_HTTP_PRIVATE", "AIOS_SEARXNG", "AIOS_WEB_CORPUS",  # settings of tools that ship
})  # fmt: skip
FOR_INIT = ("AIOS_KEY_FILE",)  # it forgets that before it has an agent
_libc = ctypes.CDLL(None)

Progress = Callable[[str], None]


def init_of(status: Status) -> psutil.Process:
    """Return the init above a running kernel. Raises psutil.NoSuchProcess if that kernel is
    gone."""
    return psutil.Process(psutil.Process(status.os_pid).ppid())


class System:
    """An init that this process started; `process` is its handle.

    `settings` are those of config.toml (docs/settings.md). Without `detach` the system ends with
    the thread that made it. Either way it has its own session: a Ctrl-C in the terminal reaches
    the starter alone, which is to call `end`. `passphrase` is that of an encrypted home.
    """

    def __init__(
        self, home: Path, settings: dict[str, Any], *, detach: bool, passphrase: str = ""
    ) -> None:  # fmt: skip
        self.home = home
        self.log = home / "init.log"
        with usable(home):
            # Both may have errors of systems before this one.
            self.logs = {path: size_of(path) for path in (self.log, home / "log" / "kernel.log")}
            log = appending(self.log)  # it may be the log of a system that runs
        with log, memory_file(json.dumps(dict(os.environ))) as environment:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", INIT, str(home), json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd="/",
                start_new_session=True, pass_fds=[environment.fileno()],
                env=open_environment() | {
                    "AIOS_HOME": str(home), "AIOS_ENVIRONMENT": str(environment.fileno()),
                },
                preexec_fn=None if detach else end_with_parent,  # noqa: PLW1509 (one system call)
            )  # fmt: skip
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:  # it says why
            stdin.write(json.dumps({"passphrase": passphrase}).encode())

    def ready(self, progress: Progress = lambda _: None) -> Status:
        """Wait until the model is loaded; `progress` is told what is waited for.

        Raises:
            AiosError: what kept the system from starting; it has ended then.
        """
        try:
            return self._ready(progress)
        except BaseException:
            self.end()
            raise

    def _ready(self, progress: Progress) -> Status:
        limit = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < limit:
            if self.process.poll() is not None:
                raise self._why()
            progress("starting the kernel")
            # not there yet, or just gone: then init has another soon
            with (
                contextlib.suppress(KernelGone, psutil.NoSuchProcess),
                connect(self.home, "aios-start") as aios,
            ):
                if self._is_ours(aios.status()):
                    return self._all_ready(aios, limit, progress)
            time.sleep(POLL_S)
        raise TimedOut(f"the system was not ready after {START_TIMEOUT_S:g} s", f"see {self.log}")

    def _is_ours(self, status: Status) -> bool:
        """Return whether it is our kernel that answers: in a busy home it is another init's."""
        return init_of(status).pid == self.process.pid

    def _all_ready(self, aios: Aios, limit: float, progress: Progress) -> Status:
        waits = ""
        while time.monotonic() < limit:
            status = aios.status()
            if status.core == "ready" and status.gateway != "starting":
                return status
            if status.core_error is not None:
                raise from_wire(status.core_error)
            waits = "waiting for its gateway to listen"
            if status.core != "ready":
                waits = "loading the model, and testing that it is exact"
            progress(waits)
            time.sleep(POLL_S)
        raise TimedOut(f"the system is still {waits}", f"see the logs in {self.home / 'log'}")

    def _why(self) -> AiosError:
        """Return the error that init left as its last line, or else the kernel."""
        tail = ""
        for path, start in self.logs.items():
            text = path.read_bytes() if path.exists() else b""
            new = text[start:] if len(text) >= start else text  # it is emptied where it grows long
            with contextlib.suppress(ValueError, IndexError):
                return from_wire(json.loads(new.splitlines()[-1]))
            tail = new.decode(errors="replace").strip()[-500:] or tail
        if not tail and not shutil.disk_usage(self.home).free:
            return DiskFull(f"the disk of {self.home} is full")
        return AiosError(
            f"init ended with code {self.process.returncode}" + f": {tail}" * bool(tail)
        )

    def end(self) -> int:
        """TERM, and wait for the end of all its processes; its exit code."""
        self.process.terminate()
        return self.process.wait()

    def end_now(self) -> None:
        """TERM again and again: init, told twice, gives nobody time to end by himself."""
        while self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TERM_INTERVAL_S)


def exit_code(process: subprocess.Popen[Any]) -> int:
    """Wait for a process's end. Return its exit code, 128 + N for signal N as a shell does."""
    code = process.wait()
    return 128 - code if code < 0 else code


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def usable(home: Path) -> Iterator[None]:
    """Make the home, if need be, for the block to write to.

    Raises:
        BadInput: it cannot be made, or written to.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise BadInput(
            f"{home} cannot be used as a home: {error.strerror}",
            "set AIOS_HOME to a folder that can be written to",
        ) from error


def appending(path: Path) -> BinaryIO:
    """Open a file for appending, for this user alone, and not through a link in its place."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "ab")


def open_environment() -> dict[str, str]:
    """Return the variables that init may hold: every agent gets a copy of its memory. The rest may
    have keys and tokens, and reaches the kernel and its services by a file."""
    names = OPEN.union(FOR_INIT)
    found = {name: value for name, value in os.environ.items() if name in names}
    for name in ("AIOS_KEY_FILE", *CERTIFICATE_VARIABLES):  # init runs in another folder
        if path := found.get(name):
            found[name] = str(Path(path).absolute())
    return found


def memory_file(text: str) -> BinaryIO:
    """Return a file with `text` that is on no disk, to be read from its beginning."""
    file = os.fdopen(os.memfd_create("aios"), "w+b")
    file.write(text.encode())
    file.seek(0)
    return file


def end_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
