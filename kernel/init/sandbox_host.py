"""init's side of the walls: which there are, who is counted in which group, what was refused."""

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

from ..sandbox import cgroup, walls
from ..sandbox.notifications import Refusals
from ..sandbox.seccomp import watched
from .protocol import Refused, StartAgent, ToKernel


class Warden:
    def __init__(
        self,
        home: Path,
        system: str,
        selector: selectors.BaseSelector,
        tell: Callable[[ToKernel], None],
        umask: int,
    ) -> None:
        self.home, self.tell, self.umask = home, tell, umask
        self.groups = cgroup.open_groups(str(home), system)
        self.walls = walls.found(self.groups)
        modes = bool(self.walls["view"])
        self.refusals = Refusals(selector, watched(modes=modes))
        for path in walls.withheld(home):
            print(
                f"init: no agent reads {path}, which has a home in it or is in one: put the "
                "certificates into a folder of their own, and name that",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        walls.searched(home, os.environ.get("PATH", os.defpath))
        walls.common(home)  # once, and not in each process that is forked
        for network, processes in itertools.product((False, True), repeat=2):
            walls.calls_filter(
                network=network, processes=processes, modes=modes,
                signals=bool(self.walls["signals"]),
            )  # fmt: skip
        self.guard, self.held = 0, -1  # the guard's OS pid, and what it holds while init lives
        self.post_guard()

    def post_guard(self) -> None:
        """A child that outlives init, if need be, to end what agents have detached."""
        if self.groups is None:
            return
        reader, self.held = os.pipe()
        self.guard = os.fork()
        if self.guard == 0:
            os.setsid()
            os.dup2(reader, 0)
            os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            os.read(0, 1)  # until nobody can write any more
            self.groups.end_all()
            os._exit(0)
        os.close(reader)

    def dismiss(self) -> None:
        """The guard is to end."""
        if self.guard:
            os.close(self.held)

    def check(self, frame: StartAgent) -> None:
        """Raises Denied where an agent asks for walls that are not here."""
        if not frame.walls.off:
            walls.check(frame.walls, self.walls)

    def beside(self, frame: StartAgent) -> str:
        """The folder whose modules an agent's program imports; "": none, as it ships or may not
        read it."""
        if "/" not in frame.program or str(Path(frame.program).parent) in walls.python():
            return ""
        if frame.walls.off:
            return str(Path(frame.program).resolve().parent)
        return walls.beside(frame.program, self.home)

    def line(self, frame: StartAgent) -> socket.socket:
        """Over which the agent is to hand its listener: `wall_in` does."""
        witness = walls.witness(frame.walls, self.walls, self.home, frame.key)
        return self.refusals.expect(witness, lambda *said: self.tell(Refused(frame.key, *said)))

    def walls_of(self, frame: StartAgent, line: int) -> Callable[[], None]:
        """What the agent's process does to itself, whose end of the line has the number `line`.

        Raises:
            OSError: there can be no group for it.
        """
        room = walls.Room(self.home, frame.key)
        group = None
        if self.groups is not None and not frame.walls.off:
            group = self.groups.make(frame.key, frame.walls.tasks)
        return partial(self._wall_in, frame, room, group, line)

    def _wall_in(self, frame: StartAgent, room: walls.Room, group: Path | None, line: int) -> None:
        room.make()
        if group is not None:
            cgroup.enter(group)
        if not frame.walls.off:
            walls.put_up(frame.walls, self.walls, room, frame.cwd or str(room.own), line)
        os.close(line)
        os.chdir(frame.cwd or room.own)
        os.umask(self.umask)

    def ended(self, key: int) -> None:
        """The agent is gone, or was never there: so is all that it started."""
        if self.groups is not None:
            if self.groups.exceeded(key):
                self.tell(Refused(key, "clone", "at its limit of tasks"))
            self.groups.end(key)
