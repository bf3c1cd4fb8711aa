"""Toolboxes: those that ship and those of the settings, and the rights of their workers."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct, field, structs

from aios.syscalls.proc import SandboxGrants, Spawn
from aios.syscalls.rules import Manifest, Rule, Rules

from ..manifests import check_rules
from ..process import Process
from ..sandbox.sandbox import import_folder, program_paths

# By name: the kernel knows the SDK only as programs to run.
WORKER, MCP_WORKER = "aios.agents.runtime.worker", "aios.agents.mcp.worker"
MCP = "mcp"  # the program of a box that is an MCP server


class Box(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A program that serves tools. Its workers belong to whoever calls, and act in the caller's
    storage as far as `allow` goes; the one of a `shared` box is there for all, and is nobody's."""

    program: Annotated[str, Meta(max_length=4096)]  # a file, or the name of one that ships
    allow: Rules = []  # of system calls; the caller's own rules bind it as well
    reach: SandboxGrants = field(default_factory=SandboxGrants)  # besides the caller's
    workers: Annotated[int, Meta(ge=1, le=64)] = 4  # for one caller, at once
    fresh: bool = False  # a worker does one job, and ends
    idle: Annotated[float, Meta(ge=0)] = 30.0  # seconds that one is kept without a job
    shared: bool = False
    task: Any = None  # what the program is told: of an MCP server how to reach it
    off: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"/[^\0]+|\w+", self.program):
            raise ValueError(f"{self.program!r} is no absolute path, and no toolbox that ships")
        check_rules([Manifest(allow=self.allow)])

    def stamp(self) -> int:
        """Return a number that is another one once the user's file has changed."""
        try:
            return Path(self.program).stat().st_mtime_ns if "/" in self.program else 0
        except OSError:  # the worker says what is wrong
            return 0

    def spawn(self, name: str, home: Path) -> Spawn:
        """Return the call that starts a worker in the system of `home`. A program of the user's may
        read what is beside it."""
        own = "/" in self.program
        read = [*self.reach.read, *(program_paths(self.program, home) if own else ())]
        grants = structs.replace(self.reach, read=read)
        task = {
            "box": name, "program": self.program, "task": self.task,
            "beside": import_folder(self.program, home) if own else "",
        }  # fmt: skip
        results = Rule("sto.write", ["{self}:tools/results/**"])  # what is too long for a reply
        allow: Rules = [*self.allow, results, "sto.upload", *(["sto.own"] if self.shared else [])]
        program = origin(MCP_WORKER if self.program == MCP else WORKER)
        return Spawn(
            program=program, task=task, name=name, reach=grants,
            manifest=Manifest(allow=allow),
        )  # fmt: skip


@cache
def origin(module: str) -> str:
    """Return the file of a module."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return spec.origin


WEB = SandboxGrants(ports=[53, 80, 443])
OWN: Rules = ["sto.read", "sto.write", "sto.upload"]
SHIPPED: dict[str, Box] = {
    "calculate": Box(program="calculate"),
    "files": Box(program="files", allow=OWN),
    "http": Box(program="http", reach=WEB),
    "image": Box(program="image", allow=OWN),
    "python": Box(program="python", fresh=True),
    "search": Box(program="search", allow=["sto.read"]),
    "shell": Box(program="shell", fresh=True, reach=SandboxGrants(processes=True)),
    "sql": Box(program="sql", allow=["sto.read"]),
    "time": Box(program="time"),
    "web": Box(program="web", allow=["sto.read"], reach=WEB),
}


class Starter(Protocol):
    """The part of the process manager that the tool manager uses."""

    def start_worker(self, name: str, box: Box, caller: Process | None) -> Process:
        """Raises Denied, LimitReached."""

    def end_now(self, process: Process, reason: str) -> None: ...


def boxes_of(settings: Mapping[str, Box]) -> dict[str, Box]:
    """Return the toolboxes that ship and those of the settings, which may replace others."""
    found = {**SHIPPED, **settings}
    return {name: box for name, box in found.items() if not box.off}
