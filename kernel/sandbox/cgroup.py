"""Count and kill an agent with all that it starts, by a cgroup of its own (controller `pids`).

A fork bomb ends at the group's limit, and processes that an agent leaves behind can be found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from hashlib import sha256
from pathlib import Path

REMOVE_TRIES, REMOVE_WAIT_S = 200, 0.01  # killed processes take a moment to go


def pids_mounts(mounts: str = "/proc/self/mountinfo") -> list[Path]:
    """List the mounted hierarchies, of either version of cgroups, that can limit processes."""
    found = []
    for line in Path(mounts).read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        if kind == "cgroup2" or (kind == "cgroup" and "pids" in options.split(",")):
            found.append(Path(before.split()[4]))
    return found


class AgentCgroups:
    """The cgroups of the agents of one system, one each, below the folder `place`.

    `system` identifies the system that runs in `home`. Groups that an earlier system of that home
    left behind are killed and removed.

    Raises:
        OSError: no group with a limit can be made there.
    """

    def __init__(self, place: Path, home: str, system: str) -> None:
        self.place = place
        of_home = f"aios-{sha256(home.encode()).hexdigest()[:16]}-"
        self.prefix = f"{of_home}{system}-"
        self.emptied: set[Path] = set()
        self.kill_all(of_home)
        self.create(0, 1).rmdir()
        is_v2 = (place / "cgroup.controllers").exists()
        self.name = f"cgroup v{2 if is_v2 else 1}"

    def create(self, key: int, tasks: int) -> Path:
        """Make a group for at most `tasks` processes and threads. Raises OSError."""
        path = self.place / f"{self.prefix}{key}"
        path.mkdir(exist_ok=True)
        try:
            (path / "pids.max").write_text(str(tasks))
        except OSError:
            path.rmdir()
            raise
        return path

    def hit_limit(self, key: int) -> bool:
        """Tell whether Linux refused a new process because the group was at its limit."""
        events = self.place / f"{self.prefix}{key}" / "pids.events"
        return events.exists() and events.read_text() != "max 0\n"

    def kill(self, key: int) -> None:
        """Kill all processes in the group, and remove it as soon as they are gone."""
        path = self.place / f"{self.prefix}{key}"
        if path.exists():
            self._empty(path)
        self.remove()

    def kill_all(self, prefix: str = "") -> None:
        """Kill and remove all groups of this system, or all whose names begin with `prefix`."""
        for path in self.place.glob((prefix or self.prefix) + "*"):
            with contextlib.suppress(FileNotFoundError):  # another system's guard was quicker
                self._empty(path)
        for _ in range(REMOVE_TRIES):
            self.remove()
            if not self.emptied:
                return
            time.sleep(REMOVE_WAIT_S)

    def _empty(self, path: Path) -> None:
        (path / "pids.max").write_text("0")  # no process can enter any more
        for word in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(word), signal.SIGKILL)
        self.emptied.add(path)

    def remove(self) -> None:
        """Remove the killed groups that are empty by now."""
        for path in list(self.emptied):
            with contextlib.suppress(OSError):  # a killed process is still in it
                path.rmdir()
                self.emptied.discard(path)


def enter(group: Path) -> None:
    """Move this process into `group`: it is counted there from now on."""
    (group / "cgroup.procs").write_text("0")


def open_cgroups(home: str, system: str) -> AgentCgroups | None:
    """Open the cgroups of a system, or return None where Linux or its rights allow none."""
    for place in pids_mounts():
        with contextlib.suppress(OSError):
            return AgentCgroups(place, home, system)
    return None
