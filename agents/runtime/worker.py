"""The program of a toolbox's worker: it says which tools it has, and does one job after another."""

from __future__ import annotations

import contextlib
import importlib.util
import resource
import sys
from typing import Any

import msgspec

from aios.agents.runtime.agent import Agent
from aios.agents.runtime.printed import Printed
from aios.agents.runtime.tool import Tool, load_tools
from aios.agents.sdk.aios import Aios
from aios.syscalls.errors import AiosError, NoProgram, NotFound, ToolArguments, ToolFailed
from aios.syscalls.tool import Job

SHIPPED = "aios.agents.tools"
LONGEST = 32 << 10  # bytes of a result in a reply; a longer one is stored
BEGIN = 2000  # characters of one that is stored
PRINTED = 1 << 20  # characters of one job that go to the log
FILE = 64 << 20  # bytes of the longest file that a tool can write


class Worker(Agent):
    def run(self, task: dict[str, Any]) -> None:
        """`task`: the toolbox's name as `box`, and the file of its tools as `program`, which
        imports what is in the folder `beside`."""
        if task["beside"]:
            sys.path.insert(0, task["beside"])
        tools = {each.name: each for each in load_tools(file_of(task["program"]))}
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        most = FILE if hard == resource.RLIM_INFINITY else min(FILE, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        self.aios.offer_tools([each.spec() for each in tools.values()])
        for piece in self.aios.serve_jobs():
            job = msgspec.convert(piece, Job)
            with contextlib.suppress(NotFound):  # it is over: its caller has given up
                self.aios.job_done(job.id, **self.outcome(tools[job.tool], job))

    def outcome(self, tool: Tool, job: Job) -> dict[str, Any]:
        """Whatever a tool does, its caller hears of it."""
        try:
            with (
                contextlib.redirect_stdout(Passed(sys.stdout)) as printed,
                contextlib.redirect_stderr(printed),
            ):
                value = tool.run(job.args, Reporting(self.aios, job.id))
            return reply(self.aios, job, value)
        except AiosError as error:
            code = error.code if isinstance(error, ToolArguments) else "tool.failed"
            return {"error": sendable(str(error)), "code": code}
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a tool may raise anything)
            return {"error": sendable(f"{type(error).__name__}: {error}")}


class Reporting:
    """The Running of a tool that a worker runs."""

    def __init__(self, aios: Aios, job_id: int) -> None:
        self.aios, self.job_id = aios, job_id

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        with contextlib.suppress(NotFound):
            self.aios.job_progress(self.job_id, done, total, message)


class Passed(Printed):
    """Passes on what a tool prints, up to a bound."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self.target, self.left = target, PRINTED

    def write(self, text: str) -> int:
        if self.left > 0:
            self.target.write(text[: self.left])
            self.left -= len(text)
            if self.left <= 0:
                self.target.write("\n[more was printed]\n")
        return len(text)


def sendable(text: str) -> str:
    """What goes into a call: its beginning, without half a character."""
    return text[:16_000].encode(errors="backslashreplace").decode()[:16_000]


def file_of(program: str) -> str:
    """Of a toolbox that ships, or a path. Raises NoProgram."""
    if "/" in program:
        return program
    spec = importlib.util.find_spec(f"{SHIPPED}.{program}")
    if spec is None or spec.origin is None:
        raise NoProgram(f"no toolbox {program!r} ships", "give the path of a file with @tool")
    return spec.origin


def reply(aios: Aios, job: Job, value: Any) -> dict[str, Any]:
    """A result as it goes to the kernel; a long one is stored, and its caller may read it there.
    Raises ToolFailed where it may not be."""
    if len(msgspec.msgpack.encode(value)) <= LONGEST:
        return {"value": value}
    data = value if isinstance(value, bytes) else text_of(value).encode()
    path = f"tools/results/{job.id}"
    begin = value[:BEGIN] if isinstance(value, bytes) else text_of(value)[:BEGIN]
    try:
        version = aios.sto_put(path, data)
        if job.caller and version.owner != job.caller:  # it belongs to a worker that serves all
            aios.sto_share(path, job.caller)
    except AiosError as error:
        raise ToolFailed(
            f"it was done, but what it returned, {len(data)} bytes, cannot be stored: "
            f"{error.message}; it begins: {begin!s}"
        ) from error
    return {"value": begin, "stored": path, "size": len(data)}


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
