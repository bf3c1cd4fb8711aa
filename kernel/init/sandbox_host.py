"""init's side of the sandboxes: mechanisms, cgroups, and reports of what was refused."""

from __future__ import annotations

import itertools
import os
import resource
import selectors
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..sandbox import cgroup, sandbox
from ..sandbox.seccomp import observed_calls
from ..sandbox.seccomp_notify import SeccompNotifications
from .protocol import SandboxRefusal, StartAgent, ToKernel


class SandboxHost:
    """Prepare and watch the sandboxes of all agents. `report` sends frames to the kernel."""

    def __init__(
        self,
        home: Path,
        system: str,
        selector: selectors.BaseSelector,
        report: Callable[[ToKernel], None],
        umask: int,
    ) -> None:
        self.home, self.report, self.umask = home, report, umask
        self.groups = cgroup.open_cgroups(str(home), system)
        self.mechanisms = sandbox.detect(self.groups)
        modes = bool(self.mechanisms["view"])
        self.notifications = SeccompNotifications(selector, observed_calls(modes=modes))
        for path in sandbox.withheld_certificates(home):
            print(
                f"init: no agent reads {path}, which has a home in it or is in one: put the "
                "certificates into a folder of their own, and name that",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        sandbox.search_folders(home, os.environ.get("PATH", os.defpath))
        sandbox.shared_paths(home)  # once here, not again in each forked process
        for network, processes in itertools.product((False, True), repeat=2):
            sandbox.seccomp_filter(
                network=network, processes=processes, modes=modes,
                signals=bool(self.mechanisms["signals"]),
            )  # fmt: skip
        self.guard, self.lifeline = 0, -1  # OS pid, and a pipe that init's death closes
        self.start_guard()

    def start_guard(self) -> None:
        """Fork the guard, which outlives init if need be, to kill what agents have detached."""
        if self.groups is None:
            return
        reader, self.lifeline = os.pipe()
        self.guard = os.fork()
        if self.guard == 0:
            os.setsid()
            os.dup2(reader, 0)
            os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            os.read(0, 1)  # returns when init is gone
            self.groups.kill_all()
            os._exit(0)
        os.close(reader)

    def release_guard(self) -> None:
        """Let the guard end."""
        if self.guard:
            os.close(self.lifeline)

    def check(self, frame: StartAgent) -> None:
        """Refuse a policy that demands mechanisms that are missing here. Raises Denied."""
        if not frame.policy.off:
            sandbox.check(frame.policy, self.mechanisms)

    def import_folder(self, frame: StartAgent) -> str:
        """Return the folder from which an agent's program imports.

        It is "" where the program ships with AIOS, or where the agent may not read the folder.
        """
        if "/" not in frame.program or str(Path(frame.program).parent) in sandbox.python_paths():
            return ""
        if frame.policy.off:
            return str(Path(frame.program).resolve().parent)
        return sandbox.import_folder(frame.program, self.home)

    def open_channel(self, frame: StartAgent) -> socket.socket:
        """Return the socket over which the agent's process passes its seccomp listener."""
        observer = sandbox.path_observer(frame.policy, self.mechanisms, self.home, frame.key)
        return self.notifications.expect(
            observer, lambda *said: self.report(SandboxRefusal(frame.key, *said))
        )

    def prepare(self, frame: StartAgent, channel: int) -> Callable[[], None]:
        """Return a function that confines the agent's process; it runs in there.

        `channel` is the number of the socket of `open_channel` in that process.

        Raises:
            OSError: there can be no cgroup for it.
        """
        directory = sandbox.AgentDirectory(self.home, frame.key)
        group = None
        if self.groups is not None and not frame.policy.off:
            group = self.groups.create(frame.key, frame.policy.tasks)
        return partial(self._enter, frame, directory, group, channel)

    def _enter(
        self, frame: StartAgent, directory: sandbox.AgentDirectory, group: Path | None, channel: int
    ) -> None:
        """Confine this process, the agent's."""
        directory.make()
        if group is not None:
            cgroup.enter(group)
        if not frame.policy.off:
            sandbox.apply(
                frame.policy, self.mechanisms, directory, frame.cwd or str(directory.own), channel
            )
        os.close(channel)
        os.chdir(frame.cwd or directory.own)
        os.umask(self.umask)

    def release(self, key: int) -> None:
        """Kill all that an agent started. The agent itself has ended, or could not be started."""
        if self.groups is not None:
            if self.groups.hit_limit(key):
                self.report(SandboxRefusal(key, "clone", "at its limit of tasks"))
            self.groups.kill(key)
