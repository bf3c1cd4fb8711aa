"""init: the parent of all. Starts, reaps and restarts; holds no other state than who is alive, and
which ends no kernel has taken note of.

    python -m aios.kernel.init HOME SETTINGS

Agents are forked from here, out of an interpreter that has the SDK loaded already, so init never
has a thread or a ZeroMQ socket. When init dies, every child gets SIGKILL from Linux.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import math
import os
import resource
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from aios.syscalls.errors import AiosError, BadInput, NoProgram
from aios.syscalls.home import endpoint

from ..config import Config, load, try_embedder
from ..lib.linux import PR_SET_CHILD_SUBREAPER, prctl
from ..lib.log_stream import become_log
from ..tools.mcp_config import open_block
from .child import CAUGHT, TOKEN_FD, become_child, exec_argv, exec_service
from .home import lock_home
from .outputs import Outputs
from .protocol import (
    FATAL,
    FRAME_BYTES,
    PART,
    Census,
    Gone,
    Heard,
    Paused,
    SignalChild,
    StartAgent,
    Started,
    StartFailed,
    StartService,
    ToKernel,
    WindUp,
    decode_to_init,
    encode,
)
from .sandbox_host import Warden

RUNNER = "aios.agents.runtime.runner"  # by name: the kernel knows the SDK only as a program to run
OF_AGENT, SPARE = 4, 64  # descriptors that init holds for an agent; that it has besides
BACKOFF, LONGEST_BACKOFF, HEALTHY = 0.05, 5.0, 10.0  # seconds
CRASHES = 3  # of a kernel by itself, one soon after the other, until its journal is set aside


class Init:
    def __init__(self, config: Config, ring: int, mcp: int, umask: int) -> None:
        self.config, self.ring, self.mcp = config, ring, mcp
        self.kernel = 0
        self.kernel_started = 0.0
        self.crashed = ""  # the signal that ended the last one, if nobody killed it
        self.backoff = BACKOFF
        self.crashes = 0  # in a row
        self.system = secrets.token_hex(8)
        self.children: dict[int, int] = {}  # agents and cores by OS pid: the kernel's key
        self.paused: set[int] = set()
        self.ended: dict[int, Gone] = {}  # no kernel has taken note of them yet
        self.link: socket.socket | None = None
        self.out: deque[bytes] = deque()  # for the kernel to read
        self.ending = False
        self.environment = int(os.environ.pop("AIOS_ENVIRONMENT"))
        os.set_inheritable(self.environment, False)
        os.environ["AIOS_HOME"] = config.home  # how a child finds the kernel
        self.runner = importlib.import_module(RUNNER)
        self.selector = selectors.DefaultSelector()
        self.wake, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in CAUGHT:
            signal.signal(number, lambda *_: None)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # a listener for each agent
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.outputs = Outputs(self.selector)
        self.warden = Warden(config.path, self.system, self.selector, self.tell, umask)

    # --- the loop -------------------------------------------------------------------------------

    def run(self) -> int:
        """Until the kernel ends by itself; its exit code."""
        gc.freeze()  # a fork then shares these pages with its parent
        self.selector.register(self.wake, selectors.EVENT_READ)
        for name in ("kernel", "core", "index", "gateway"):  # of an earlier system
            Path(self.log(name)).unlink(missing_ok=True)
        self.start_kernel()
        while True:
            for key, events in self.selector.select():
                if key.data is not None:  # the warden's, or what an agent prints
                    key.data()
                elif key.fileobj == self.wake:
                    signals = os.read(self.wake, 4096)
                    if {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(signals):
                        self.wind_up()
                else:
                    if events & selectors.EVENT_WRITE:
                        self.flush()
                    if events & selectors.EVENT_READ:
                        self.from_kernel()
            code = self.reap()
            if code is not None:
                return code

    def from_kernel(self) -> bool:
        """Do one thing that the kernel asks for. False: there is none, or it is dying."""
        assert self.link is not None
        try:
            data = self.link.recv(FRAME_BYTES)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            with contextlib.suppress(KeyError):
                self.selector.unregister(self.link)
            return False
        frame = decode_to_init(data)
        match frame:
            case StartAgent():
                self.start(frame.key, lambda: self.start_agent(frame))
            case StartService():
                self.start(frame.key, lambda: self.start_service(frame))
            case SignalChild() if frame.os_pid in self.children:
                signal_group(frame.os_pid, frame.signal)
            case Heard():
                self.ended.pop(frame.os_pid, None)
        return True

    def tell(self, frame: ToKernel) -> None:
        """When the kernel reads it; if that is gone, the next one gets a census."""
        if self.link is not None:
            self.out.append(encode(frame))
            self.flush()

    def flush(self) -> None:
        assert self.link is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.out:
                self.link.send(self.out[0])
                self.out.popleft()
        with contextlib.suppress(KeyError):  # it is dying, and not watched any more
            write = selectors.EVENT_WRITE if self.out else 0
            self.selector.modify(self.link, selectors.EVENT_READ | write)

    def tell_census(self) -> None:
        children, gone = list(self.children.items()), list(self.ended.values())
        parts = max(1, math.ceil(max(len(children), len(gone)) / PART))
        for part in range(parts):
            cut = slice(part * PART, (part + 1) * PART)
            some = dict(children[cut])
            paused = [os_pid for os_pid in some if os_pid in self.paused]
            more = part + 1 < parts
            self.tell(
                Census(self.system, some, paused, gone[cut], more, self.crashed, self.warden.walls)
            )

    def wind_up(self) -> None:
        if self.ending:  # told twice: no more patience
            signal_group(self.kernel, signal.SIGKILL)
        self.ending = True
        self.tell(WindUp())

    # --- children -------------------------------------------------------------------------------

    def start_kernel(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = msgspec.json.encode(self.config).decode()
        argv = [sys.executable, "-m", "aios.kernel", settings]
        keep = (theirs.fileno(), self.mcp, *self.rings(), self.environment)
        main = exec_service(argv, TOKEN_FD + len(keep) - 1)
        self.kernel = self.fork_service(main, self.log("kernel"), keep)
        theirs.close()
        ours.setblocking(False)
        self.link = ours
        self.out.clear()
        self.kernel_started = time.monotonic()
        self.selector.register(ours, selectors.EVENT_READ)
        self.tell_census()

    def start(self, key: int, fork: Callable[[], int]) -> None:
        try:
            os_pid = fork()
        except AiosError as error:
            self.tell(StartFailed(key, error.to_wire()))
            return
        except OSError as error:  # no such file after all, no more descriptors, no more processes
            self.tell(StartFailed(key, NoProgram(f"it cannot be started: {error}").to_wire()))
            return
        self.children[os_pid] = key
        self.tell(Started(key, os_pid))

    def start_agent(self, frame: StartAgent) -> int:
        if OF_AGENT * len(self.children) + SPARE > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # before init itself has none
        program: str = self.runner.resolve(frame.program)
        self.warden.check(frame)
        reader, writer = os.pipe()
        os.write(writer, frame.token)
        os.close(writer)
        is_agent = program.endswith(".py")
        main = (
            partial(self.runner.main, self.warden.beside(frame))
            if is_agent else exec_argv([program, *frame.args])
        )  # fmt: skip
        with os.fdopen(reader, "rb"), self.warden.line(frame) as line:
            wall_in = self.warden.walls_of(frame, TOKEN_FD + 1)
            try:
                with os.fdopen(self.outputs.open(frame.key, frame.log), "wb") as output:
                    keep = (reader, line.fileno())
                    return self.fork(main, output.fileno(), keep=keep, wall_in=wall_in)
            except OSError:
                self.outputs.ended(frame.key)
                self.warden.ended(frame.key)
                raise

    def start_service(self, frame: StartService) -> int:
        keep = (*(self.rings() if frame.ring else ()), self.environment)
        main = exec_service(frame.argv, TOKEN_FD + len(keep) - 1)
        return self.fork_service(main, frame.log, keep)

    def fork_service(self, main: Callable[[], object], log: str, keep: Sequence[int]) -> int:
        """A part of the system, which writes its log itself."""
        with open(log, "ab", opener=_private) as output:
            return self.fork(main, output.fileno(), keep=keep)

    def rings(self) -> list[int]:
        return [] if self.ring < 0 else [self.ring]

    def fork(
        self, main: Callable[[], object], output: int, *, keep: Sequence[int] = (),
        wall_in: Callable[[], None] = lambda: None,
    ) -> int:  # fmt: skip
        sys.stdout.flush()
        sys.stderr.flush()
        # Until it has handlers of its own, what is sent to the child would wake init up.
        signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
        try:
            os_pid = os.fork()
            if os_pid == 0:
                become_child(main, output, keep, wall_in)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)
        return os_pid

    def reap(self) -> int | None:
        """Take note of each child that ended or paused; the exit code once the kernel is done."""
        while True:
            try:
                os_pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                os_pid = 0
            if os_pid == 0:
                return None
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                (self.paused.add if os.WIFSTOPPED(status) else self.paused.discard)(os_pid)
                self.tell(Paused(os_pid, os.WIFSTOPPED(status)))
                continue
            self.paused.discard(os_pid)
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            code = 128 + number if number else os.WEXITSTATUS(status)
            if os_pid == self.kernel:
                if self.kernel_gone(code, number):
                    return code
            elif os_pid in self.children:
                key = self.children.pop(os_pid)
                signal_group(os_pid, signal.SIGKILL)  # what it left behind in its group
                self.outputs.ended(key)
                name = signal.Signals(number).name.removeprefix("SIG") if number else ""
                self.ended[os_pid] = Gone(key, os_pid, code, name)
                self.warden.ended(key)
                self.tell(self.ended[os_pid])
            self.kill_strays()

    def kill_strays(self) -> None:
        """Whoever was orphaned to init and is none of ours outlived the agent that started it; so
        may have what it started itself, and that comes up when it is reaped."""
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        ours = {*self.children, self.kernel, self.warden.guard}
        for os_pid in {int(word) for word in listed.split()} - ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(os_pid, signal.SIGKILL)

    def kernel_gone(self, code: int, number: int) -> bool:
        """End with it if it ended by itself; else start another, which takes over from it."""
        assert self.link is not None
        while self.from_kernel():  # what it still asked for
            pass
        self.link.close()
        self.link = None
        if self.ending or code in (0, FATAL):
            self.kill_all()
            if number:  # killed: it has left its sockets behind
                for name in (
                    "run/kernel.sock", "core.sock", "text.sock", "index.sock", "gate.sock",
                ):  # fmt: skip
                    (self.config.path / name).unlink(missing_ok=True)
            return True
        self._back_off(number)
        crashed = number not in (0, signal.SIGKILL)
        self.crashed = signal.Signals(number).name if crashed else ""
        how = f"died of {signal.Signals(number).name}" if number else f"failed with {code}"
        lived = time.monotonic() - self.kernel_started
        print(
            f"init: the kernel {how} after {lived:.1f} s; another in {self.backoff:.2f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        time.sleep(self.backoff)
        self.start_kernel()
        return False

    def _back_off(self, number: int) -> None:
        """Whoever kills a kernel is not waited for; one that fails over and over may fail of what
        is in its journal, and is started without it."""
        soon = time.monotonic() - self.kernel_started < HEALTHY
        if number == signal.SIGKILL or not soon:
            self.backoff, self.crashes = BACKOFF, 0
            return
        self.backoff = min(self.backoff * 2, LONGEST_BACKOFF)
        self.crashes += 1
        if self.crashes == CRASHES:
            journal = self.config.path / "journal"
            aside = self.config.path / f"journal-{time.time():.0f}"
            journal.rename(aside)
            print(f"init: set its journal aside, as {aside}", file=sys.stderr, flush=True)
            self.kill_all()
            self.warden.post_guard()
            self.ended.clear()
            self.crashes = 0

    def kill_all(self) -> None:
        for os_pid in self.children:
            signal_group(os_pid, signal.SIGKILL)
        self.children.clear()
        self.warden.dismiss()
        with contextlib.suppress(ChildProcessError):
            while True:
                self.kill_strays()
                os.waitpid(-1, 0)
        self.outputs.close()

    def log(self, name: str) -> str:
        return str(self.config.path / "log" / f"{name}.log")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def signal_group(os_pid: int, number: int) -> None:
    """A child is the leader of its group; until it has made it, and after it is gone, try both."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            send(os_pid, number)
            return


def open_ring(config: Config) -> int | None:
    """A descriptor of the data keys, for the kernel and the core. init does not read them, since
    agents are forked out of it. -1: the home is in clear; None: keyring.py has said what is wrong.
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


def main() -> int:
    """Runs a system in the home argv[1], with the settings of argv[2] (JSON) above config.toml.

    What keeps it from starting goes to stderr as the JSON of an AiosError.
    """
    become_log()
    umask = os.umask(0o077)  # agents have that of the person
    try:
        home = Path(sys.argv[1])
        endpoint(home)  # refuses one whose path is too long
        _lock = lock_home(home)  # before a setting is believed that is in there
        config = load(home, json.loads(sys.argv[2]))
        if config.embedder:
            try_embedder(config.embedder)
        mcp = open_block(config.mcp)
        ring = open_ring(config)
    except AiosError as error:
        print(json.dumps(error.to_wire()), file=sys.stderr)
        return FATAL
    except OSError as error:
        refused = BadInput(f"the home cannot be used: {error}", "set AIOS_HOME to another folder")
        print(json.dumps(refused.to_wire()), file=sys.stderr)
        return FATAL
    return FATAL if ring is None else Init(config, ring, mcp, umask).run()


if __name__ == "__main__":
    sys.exit(main())
