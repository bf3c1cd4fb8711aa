"""The tool manager as methods of the SDK."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from aios.syscalls import tool as m
from aios.syscalls.base import Done
from aios.syscalls.errors import AiosError, Denied, NotFound, ToolFailed

from .calls import Calls
from .connection import Pending

BATCH_BYTES = 48 << 10  # of tools in one call


class ToolCall:
    """A running call of a tool. Iterate it for progress; `result` waits for its end."""

    def __init__(self, calls: Calls, pending: Pending) -> None:
        self._calls, self._pending = calls, pending

    def __iter__(self) -> Iterator[m.ToolProgress]:
        for body in self._pending:
            yield msgspec.convert(body, m.ToolProgress)

    def result(self, timeout: float | None = None) -> m.ToolResult:
        """Wait for the value that the tool returned. If it is longer than 32 KiB, there is its
        beginning, and the path of the whole.

        Raises:
            ToolArguments: they do not fit; nothing was done.
            ToolFailed, ToolCrashed, ToolTimeout: the message is for a model to read.
            ToolUnknown: a tool that changes something was interrupted.
            Denied: the caller may not. NotFound: there is no such tool.
            TimedOut: no result within `timeout` seconds; the call goes on.
        """
        return msgspec.convert(self._pending.wait(timeout), m.ToolResult)

    @property
    def ended(self) -> bool:
        return self._pending.ended

    def cancel(self) -> bool:
        """Cancel the call; return false if it has ended already."""
        return self._calls.cancel(self._pending.id)


def absent(name: str, found: m.Tools, hint: str) -> AiosError:
    """Return the error that says why the caller has no tool of this name."""
    box = name.partition(".")[0]
    seen = sum(spec.name.partition(".")[0] == box for spec in found.tools)
    for each in found.boxes:
        if each.name == box and each.error:
            return ToolFailed(f"the toolbox {box} did not start: {each.error}")
        if each.name == box and seen < each.tools:
            return Denied(
                f"nothing grants this agent the tool {name!r}: it takes the right tool.call on it",
                f'allow = ["tool.call {name}"] in its manifest or group, or `aios grant /AGENT '
                f"tool.call {name}`",
            )
    return NotFound(f"no tool {name!r}", hint)


class ToolCalls(Calls):
    def tools(self) -> list[m.Spec]:
        """List the tools that the caller may call, with the schemas of their arguments."""
        return self.toolboxes().tools

    def toolboxes(self) -> m.Tools:
        """List tools and toolboxes, including those that could not be started."""
        return self._call(m.Tools, "tool.list")

    def call_tool(
        self, name: str, args: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> ToolCall:
        """Start a call of a tool, which may take `timeout` seconds. Several may run at once."""
        return ToolCall(
            self, self.start("tool.call", name=name, args=dict(args or {}), timeout=timeout)
        )

    # --- for workers ------------------------------------------------------------------------------

    def offer_tools(self, specs: Sequence[m.Spec], *, anew: bool = False) -> None:
        """Offer tools, as a worker: besides those offered before, or with `anew` in their place.

        Raises:
            Denied: the caller is no worker. BadInput: a name is not its toolbox's.
        """
        batch: list[Any] = []
        for spec in specs:
            plain = msgspec.to_builtins(spec)
            if batch and len(msgspec.msgpack.encode([*batch, plain])) > BATCH_BYTES:
                self._call(Done, "tool.offer", tools=batch, anew=anew)
                batch, anew = [], False
            batch.append(plain)
        self._call(Done, "tool.offer", tools=batch, anew=anew)

    def serve_jobs(self, at_once: int = 1) -> Pending:
        """Take jobs (syscalls.tool.Job), as a worker: one a piece. End each with `job_done`."""
        return self.start("tool.serve", at_once=at_once)

    def job_progress(
        self, job: int, done: float, total: float | None = None, message: str = ""
    ) -> None:
        """Report the progress of a job. Raises NotFound if it is over."""
        self._call(
            Done, "tool.progress", id=job, done=float(done), total=total, message=message[:1024]
        )

    def job_done(
        self, job: int, value: Any = None, *, stored: str = "", size: int = 0,
        error: str | None = None, code: str = "tool.failed",
    ) -> None:  # fmt: skip
        """End a job. Raises NotFound if it is over: its caller has given up."""
        end = {"value": value, "stored": stored, "size": size, "error": error, "code": code}
        self.start("tool.done", id=job, **end).wait()
