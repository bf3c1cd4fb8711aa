"""The program of a toolbox's worker: offer the tools, and do one job after another."""

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
MAX_INLINE_BYTES = 32 << 10  # of a result in a reply; a longer one is stored
PREVIEW_CHARS = 2000  # of a stored result
MAX_PRINTED_CHARS = 1 << 20  # of one job in the log
MAX_FILE_BYTES = 64 << 20  # that a tool can write


class Worker(Agent):
    def run(self, task: dict[str, Any]) -> None:
        """Serve a toolbox. `task` has its name as `box`, and as `program` the file of its tools,
        which may import modules from the folder `beside`."""
        if task["beside"]:
            sys.path.insert(0, task["beside"])
        tools = {each.name: each for each in load_tools(file_of(task["program"]))}
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        most = MAX_FILE_BYTES if hard == resource.RLIM_INFINITY else min(MAX_FILE_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        self.aios.offer_tools([each.spec() for each in tools.values()])
        for piece in self.aios.serve_jobs():
            job = msgspec.convert(piece, Job)
            with contextlib.suppress(NotFound):  # it is over: its caller has given up
                self.aios.job_done(job.id, **self.outcome(tools[job.tool], job))

    def outcome(self, tool: Tool, job: Job) -> dict[str, Any]:
        """Run a job, and return its end as arguments of `job_done`, whatever the tool does."""
        try:
            with (
                contextlib.redirect_stdout(BoundedOutput(sys.stdout)) as printed,
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


class BoundedOutput(Printed):
    """Passes on the output of a tool, up to a bound."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self.target, self.left = target, MAX_PRINTED_CHARS

    def write(self, text: str) -> int:
        if self.left > 0:
            self.target.write(text[: self.left])
            self.left -= len(text)
            if self.left <= 0:
                self.target.write("\n[more was printed]\n")
        return len(text)


def sendable(text: str) -> str:
    """Cut a text so that it fits into a call, and escape lone surrogates."""
    return text[:16_000].encode(errors="backslashreplace").decode()[:16_000]


def file_of(program: str) -> str:
    """Find the file of a toolbox: one that ships, or a path. Raises NoProgram."""
    if "/" in program:
        return program
    spec = importlib.util.find_spec(f"{SHIPPED}.{program}")
    if spec is None or spec.origin is None:
        raise NoProgram(f"no toolbox {program!r} ships", "give the path of a file with @tool")
    return spec.origin


def reply(aios: Aios, job: Job, value: Any) -> dict[str, Any]:
    """Return a result as arguments of `job_done`; a long one is stored for its caller. Raises
    ToolFailed if it cannot be stored."""
    if len(msgspec.msgpack.encode(value)) <= MAX_INLINE_BYTES:
        return {"value": value}
    data = value if isinstance(value, bytes) else text_of(value).encode()
    path = f"tools/results/{job.id}"
    begin = value[:PREVIEW_CHARS] if isinstance(value, bytes) else text_of(value)[:PREVIEW_CHARS]
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
