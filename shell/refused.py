"""Refusals of the sandbox to an agent, and the options of `aios run` that lift them."""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aios.agents.sdk.connection import Pending

from .escape import shown

LINES = 6  # that are said; the audit log has all
NO_FILE = re.compile(r"/<[^/]*>$")  # "<string>": Python looks for the line of an error in eval()
DOES = {"read": "reading", "write": "writing"}


class Refused:
    """The refusals of process `pid` that a kernel.events call has told: (call, object, needs)."""

    def __init__(self, call: Pending) -> None:
        self.call = call
        self.pid = 0  # until it is spawned
        self.found: dict[tuple[str, str, str], None] = {}

    def look(self) -> None:
        while self.call.pieces:
            event = self.call.pieces.popleft()
            if event["what"] == "refused" and event["pid"] == self.pid:
                detail: dict[str, Any] = event["detail"]
                if not NO_FILE.search(detail["object"]):
                    self.found[detail["call"], detail["object"], detail.get("needs", "")] = None

    def said(self, home: Path) -> Iterator[str]:
        """Yield lines about the refusals, in the system of `home`."""
        every = list(dict.fromkeys(line(*found, home) for found in self.found))
        for each in every[:LINES]:
            yield f"aios: refused: {each}"
        if len(every) > LINES:
            more = len(every) - LINES
            yield f"aios: refused: {more} more; `aios audit search --decision denied` has all"


def line(call: str, about: str, needs: str, home: Path) -> str:
    """Describe a refusal, and the option that lifts it. `about` is untrusted, and is escaped."""
    if needs == "processes":
        return "starting a process (let it: --processes)"
    if needs == "ports":
        port = about.removeprefix("port ")
        if not port.isdigit():
            return "using the network (let it: --port, for each port)"
        return f"connecting to port {port} (let it: --port {port})"
    if needs not in DOES:
        return f"{call} {shown(about)}".rstrip() + " (no option lets an agent do that)"
    path = Path(about.partition(" by ")[0])
    return f"{DOES[needs]} {shown(str(path))} ({shown(option(path, needs, home))})"


def option(path: Path, needs: str, home: Path) -> str:
    """Return the option that lets an agent use `path`. For a file that does not exist it names the
    folder, but never one that a home is in, or that all share."""
    if path.is_relative_to(home):
        return "no option lets an agent into the system's home"
    if path.parts[:2] == ("/", "proc"):
        return "no option lets an agent read of processes"
    if is_there(path):
        return f"let it: --{needs} {shlex.quote(str(path))}"
    if needs == "read":
        return "there is no such file"
    folder = next(above for above in path.parents if is_there(above))
    shared = folder.stat().st_mode & stat.S_ISVTX  # as /tmp
    if shared or any(each.is_relative_to(folder) for each in (home, Path.home())):
        return f"let it: make that first, then --write {shlex.quote(str(path))}"
    return f"let it: --write {shlex.quote(str(folder))}"


def is_there(path: Path) -> bool:
    """Return whether there is a file, also if this user may not look."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
