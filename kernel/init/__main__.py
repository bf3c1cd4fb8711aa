"""init, the parent of all processes of a system: it starts, reaps and restarts them.

    python -m aios.kernel.init HOME SETTINGS

Its only state is which children live, and which ends no kernel has acknowledged. Agents are forked
out of this interpreter, which has the SDK loaded already, so init never has a thread or a ZeroMQ
socket. When init dies, every child gets SIGKILL from Linux.
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
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from aios.syscalls.errors import AiosError, BadInput, NoProgram
from aios.syscalls.home import endpoint

from ..config import Config, load, try_embedder
from ..lib.callbacks import ignore
from ..lib.linux import PR_SET_CHILD_SUBREAPER, prctl
from ..lib.log_stream import become_log
from ..tools.mcp_config import open_block
from .child import CAUGHT_SIGNALS, TOKEN_FD, become_child, exec_argv, exec_service, signal_group
from .home import lock_home, open_ring
from .kernel_link import KernelLink
from .outputs import Outputs
from .protocol import (
    FATAL,
    TAKEOVER_CHILDREN,
    ExitAcknowledged,
    Gone,
    Paused,
    SignalChild,
    StartAgent,
    Started,
    StartFailed,
    StartService,
    Takeover,
    ToKernel,
    WindUp,
)
from .sandbox_host import SandboxHost

# By name: the kernel may not import the SDK.
RUNNER = "aios.agents.runtime.runner"
MCP_CONNECTION = "aios.agents.mcp.connection"
AGENT_FDS, SPARE_FDS = 4, 64  # descriptors of init for each agent, and for all else
BACKOFF_S, MAX_BACKOFF_S, HEALTHY_S = 0.05, 5.0, 10.0
MAX_CRASHES = 3  # in a row, until the journal is set aside


class Init:
    """The event loop of init, and the children of one system."""

    def __init__(self, config: Config, ring: int, mcp: int, umask: int) -> None:
        self.config, self.ring, self.mcp = config, ring, mcp
        self.kernel = 0
        self.kernel_started = 0.0
        self.crashed = ""  # the signal that ended the last kernel, unless killed
        self.backoff = BACKOFF_S
        self.crashes = 0  # in a row
        self.system = secrets.token_hex(8)
        self.children: dict[int, int] = {}  # OS pid: the kernel's key, of agents and services
        self.paused: set[int] = set()
        self.ended: dict[int, Gone] = {}  # until a kernel acknowledges it
        self.link: KernelLink | None = None
        self.ending = False
        self.environment = int(os.environ.pop("AIOS_ENVIRONMENT"))
        os.set_inheritable(self.environment, False)
        os.environ["AIOS_HOME"] = config.home  # children find the kernel by this
        self.runner = importlib.import_module(RUNNER)
        self.selector = selectors.DefaultSelector()
        self.wake, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in CAUGHT_SIGNALS:
            signal.signal(number, ignore)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # each agent has a listener here
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.outputs = Outputs(self.selector)
        self.sandbox_host = SandboxHost(config.path, self.system, self.selector, self.tell, umask)

    # --- the loop -------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until the kernel ends by itself, and return its exit code."""
        self.selector.register(self.wake, selectors.EVENT_READ)
        for name in ("kernel", "core", "index", "gateway"):  # of an earlier system
            Path(self.log(name)).unlink(missing_ok=True)
        self.start_kernel()
        self.preload_mcp()
        gc.freeze()  # forks then share these pages
        while True:
            for key, events in self.selector.select():
                if key.data is not None:  # a callback of the sandbox host or of the outputs
                    key.data()
                elif key.fileobj == self.wake:
                    signals = os.read(self.wake, 4096)
                    if {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(signals):
                        self.wind_up()
                else:
                    assert self.link is not None
                    if events & selectors.EVENT_WRITE:
                        self.link.flush()
                    if events & selectors.EVENT_READ:
                        self.from_kernel()
            code = self.reap()
            if code is not None:
                return code

    def preload_mcp(self) -> None:
        """Import what each worker of an MCP server needs, while the kernel starts: it takes longer
        than all else that a worker does before it can serve."""
        if self.config.mcp:
            with contextlib.suppress(Exception):  # a worker that imports it says why it cannot
                importlib.import_module(MCP_CONNECTION)

    def from_kernel(self) -> bool:
        """Serve one request of the kernel. Return False if there is none."""
        assert self.link is not None
        frame = self.link.receive()
        match frame:
            case None:
                return False
            case StartAgent():
                self.start(frame.key, partial(self.start_agent, frame))
            case StartService():
                self.start(frame.key, partial(self.start_service, frame))
            case SignalChild() if frame.os_pid in self.children:
                signal_group(frame.os_pid, frame.signal)
            case ExitAcknowledged():
                self.ended.pop(frame.os_pid, None)
        return True

    def tell(self, frame: ToKernel) -> None:
        """Queue a frame for the kernel. If it is gone, the next one gets a takeover instead."""
        if self.link is not None:
            self.link.send(frame)

    def tell_takeover(self) -> None:
        children, gone = list(self.children.items()), list(self.ended.values())
        mechanisms = self.sandbox_host.mechanisms
        parts = max(1, math.ceil(max(len(children), len(gone)) / TAKEOVER_CHILDREN))
        for part in range(parts):
            cut = slice(part * TAKEOVER_CHILDREN, (part + 1) * TAKEOVER_CHILDREN)
            some = dict(children[cut])
            paused = [os_pid for os_pid in some if os_pid in self.paused]
            more = part + 1 < parts
            self.tell(
                Takeover(self.system, some, paused, gone[cut], more, self.crashed, mechanisms)
            )

    def wind_up(self) -> None:
        if self.ending:  # the second request: do not wait for the kernel
            signal_group(self.kernel, signal.SIGKILL)
        self.ending = True
        self.tell(WindUp())

    # --- children -------------------------------------------------------------------------------

    def start_kernel(self) -> None:
        link = KernelLink(self.selector)
        settings = msgspec.json.encode(self.config).decode()
        argv = [sys.executable, "-m", "aios.kernel", settings]
        keep = (link.theirs.fileno(), self.mcp, *self.rings(), self.environment)
        main = exec_service(argv, TOKEN_FD + len(keep) - 1)
        self.kernel = self.fork_service(main, self.log("kernel"), keep)
        link.theirs.close()
        self.link = link
        self.kernel_started = time.monotonic()
        self.tell_takeover()

    def start(self, key: int, fork: Callable[[], int]) -> None:
        try:
            os_pid = fork()
        except AiosError as error:
            self.tell(StartFailed(key, error.to_wire()))
            return
        except OSError as error:  # a lost file, or a limit on descriptors, processes
            self.tell(StartFailed(key, NoProgram(f"it cannot be started: {error}").to_wire()))
            return
        self.children[os_pid] = key
        self.tell(Started(key, os_pid))

    def start_agent(self, frame: StartAgent) -> int:
        if (
            AGENT_FDS * len(self.children) + SPARE_FDS
            > resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        ):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # keep the last ones for init
        program: str = self.runner.resolve(frame.program)
        self.sandbox_host.check(frame)
        reader, writer = os.pipe()
        os.write(writer, frame.token)
        os.close(writer)
        is_agent = program.endswith(".py")
        main = (
            partial(self.runner.main, self.sandbox_host.import_folder(frame))
            if is_agent else exec_argv([program, *frame.args])
        )  # fmt: skip
        with os.fdopen(reader, "rb"), self.sandbox_host.open_channel(frame) as channel:
            enter_sandbox = self.sandbox_host.prepare(frame, TOKEN_FD + 1)
            try:
                with os.fdopen(self.outputs.open(frame.key, frame.log), "wb") as output:
                    keep = (reader, channel.fileno())
                    return self.fork(main, output.fileno(), keep=keep, enter_sandbox=enter_sandbox)
            except OSError:
                self.outputs.ended(frame.key)
                self.sandbox_host.release(frame.key)
                raise

    def start_service(self, frame: StartService) -> int:
        keep = (*(self.rings() if frame.ring else ()), self.environment)
        main = exec_service(frame.argv, TOKEN_FD + len(keep) - 1)
        return self.fork_service(main, frame.log, keep)

    def fork_service(self, main: Callable[[], object], log: str, keep: Sequence[int]) -> int:
        """Fork a part of the system, which writes its log itself."""
        with open(log, "ab", opener=_private) as output:
            return self.fork(main, output.fileno(), keep=keep)

    def rings(self) -> list[int]:
        return [] if self.ring < 0 else [self.ring]

    def fork(
        self, main: Callable[[], object], output: int, *, keep: Sequence[int] = (),
        enter_sandbox: Callable[[], None] = ignore,
    ) -> int:  # fmt: skip
        sys.stdout.flush()
        sys.stderr.flush()
        # Until the child has handlers of its own, its signals would wake init.
        signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT_SIGNALS)
        try:
            os_pid = os.fork()
            if os_pid == 0:
                become_child(main, output, keep, enter_sandbox)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT_SIGNALS)
        return os_pid

    def reap(self) -> int | None:
        """Handle all children that ended or paused. Return the exit code once the kernel is
        done.
        """
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
                signal_group(os_pid, signal.SIGKILL)  # processes that it left in its group
                lost = self.outputs.ended(key)
                name = signal.Signals(number).name.removeprefix("SIG") if number else ""
                self.ended[os_pid] = Gone(key, os_pid, code, name, lost)
                self.sandbox_host.release(key)
                self.tell(self.ended[os_pid])
            self.kill_strays()

    def kill_strays(self) -> None:
        """Kill the orphans of agents that have ended.

        An orphan's own children are adopted by init when it is reaped, and killed then.
        """
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        ours = {*self.children, self.kernel, self.sandbox_host.guard}
        for os_pid in {int(word) for word in listed.split()} - ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(os_pid, signal.SIGKILL)

    def kernel_gone(self, code: int, number: int) -> bool:
        """End with a kernel that ended by itself, or start another, which takes over."""
        assert self.link is not None
        while self.from_kernel():  # its last requests
            pass
        self.link.close()
        self.link = None
        if self.ending or code in (0, FATAL):
            self.kill_all()
            if number:  # a killed kernel leaves its sockets behind
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
        """Set how long to wait for the next kernel.

        A kernel that was killed is restarted at once. One that fails over and over may fail because
        of its journal, and is started without that.
        """
        soon = time.monotonic() - self.kernel_started < HEALTHY_S
        if number == signal.SIGKILL or not soon:
            self.backoff, self.crashes = BACKOFF_S, 0
            return
        self.backoff = min(self.backoff * 2, MAX_BACKOFF_S)
        self.crashes += 1
        if self.crashes == MAX_CRASHES:
            journal = self.config.path / "journal"
            aside = self.config.path / f"journal-{time.time():.0f}"
            journal.rename(aside)
            print(f"init: set its journal aside, as {aside}", file=sys.stderr, flush=True)
            self.kill_all()
            self.sandbox_host.start_guard()
            self.ended.clear()
            self.crashes = 0

    def kill_all(self) -> None:
        for os_pid in self.children:
            signal_group(os_pid, signal.SIGKILL)
        self.children.clear()
        self.sandbox_host.release_guard()
        with contextlib.suppress(ChildProcessError):
            while True:
                self.kill_strays()
                os.waitpid(-1, 0)
        self.outputs.close()

    def log(self, name: str) -> str:
        return str(self.config.path / "log" / f"{name}.log")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def main() -> int:
    """Run a system in the home argv[1], with the settings of argv[2] (JSON) above config.toml.

    An error that keeps it from starting goes to stderr as the JSON of an AiosError.
    """
    become_log()
    umask = os.umask(0o077)  # agents get the person's umask
    try:
        home = Path(sys.argv[1])
        endpoint(home)  # refuses a path that is too long
        _lock = lock_home(home)  # before its settings are trusted
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
