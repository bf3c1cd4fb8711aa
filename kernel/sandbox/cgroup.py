"""Groups of processes that Linux counts (cgroups, the controller `pids`): an agent with all that it
starts is one, so a fork bomb ends at a number, and what is left of an agent can be found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from hashlib import sha256
from pathlib import Path

TRIES, WAIT = 200, 0.01  # seconds: those that are killed need a moment


def places(mounts: str = "/proc/self/mountinfo") -> list[Path]:
    """Folders in which groups with a limit on processes may be, of either version of cgroups."""
    found = []
    for line in Path(mounts).read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        if kind == "cgroup2" or (kind == "cgroup" and "pids" in options.split(",")):
            found.append(Path(before.split()[4]))
    return found


class Groups:
    """One group for each agent of the `system` in `home`, in the folder `place`. What an earlier
    system in that home has left is killed and removed.

    Raises:
        OSError: no group with a limit can be made there.
    """

    def __init__(self, place: Path, home: str, system: str) -> None:
        self.place = place
        of_home = f"aios-{sha256(home.encode()).hexdigest()[:16]}-"
        self.prefix = f"{of_home}{system}-"
        self.emptied: set[Path] = set()
        self.end_all(of_home)
        self.make(0, 1).rmdir()
        is_v2 = (place / "cgroup.controllers").exists()
        self.name = f"cgroup v{2 if is_v2 else 1}"

    def make(self, key: int, tasks: int) -> Path:
        """A group for at most `tasks` processes and threads. Raises OSError."""
        path = self.place / f"{self.prefix}{key}"
        path.mkdir(exist_ok=True)
        try:
            (path / "pids.max").write_text(str(tasks))
        except OSError:
            path.rmdir()
            raise
        return path

    def exceeded(self, key: int) -> bool:
        """Whether the group was at its limit when one more was to be started."""
        events = self.place / f"{self.prefix}{key}" / "pids.events"
        return events.exists() and events.read_text() != "max 0\n"

    def end(self, key: int) -> None:
        """Kill whoever is in the group; it is removed as soon as they are gone."""
        path = self.place / f"{self.prefix}{key}"
        if path.exists():
            self._empty(path)
        self.remove()

    def end_all(self, prefix: str = "") -> None:
        """Of this system, or of all whose groups begin so."""
        for path in self.place.glob((prefix or self.prefix) + "*"):
            with contextlib.suppress(FileNotFoundError):  # another system's guard was quicker
                self._empty(path)
        for _ in range(TRIES):
            self.remove()
            if not self.emptied:
                return
            time.sleep(WAIT)

    def _empty(self, path: Path) -> None:
        (path / "pids.max").write_text("0")  # nobody comes in any more
        for word in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(word), signal.SIGKILL)
        self.emptied.add(path)

    def remove(self) -> None:
        """Those that have become empty."""
        for path in list(self.emptied):
            with contextlib.suppress(OSError):  # busy for a moment yet
                path.rmdir()
                self.emptied.discard(path)


def enter(group: Path) -> None:
    """This process is counted in it from here on."""
    (group / "cgroup.procs").write_text("0")


def open_groups(home: str, system: str) -> Groups | None:
    """None where this Linux, or who may do what in it, has no such groups."""
    for place in places():
        with contextlib.suppress(OSError):
            return Groups(place, home, system)
    return None
