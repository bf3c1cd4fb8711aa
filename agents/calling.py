"""The tool manager as methods of the SDK: which tools there are, and calls of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from aios.syscalls import tool as m

from .calls import Calls
from .client import Pending


class ToolCall:
    """A call on its way. Iterate it for its progress; `result` waits for its end."""

    def __init__(self, calls: Calls, pending: Pending) -> None:
        self._calls, self._pending = calls, pending

    def __iter__(self) -> Iterator[m.ToolProgress]:
        for body in self._pending:
            yield msgspec.convert(body, m.ToolProgress)

    def result(self, timeout: float | None = None) -> m.ToolResult:
        """What the tool returned; the beginning and the place of what is longer than 32 KiB.

        Raises:
            ToolArguments: they do not fit; nothing was done.
            ToolFailed, ToolCrashed, ToolTimeout: what went wrong, for a model to read.
            ToolUnknown: a tool that changes something was interrupted.
            Denied: the caller may not. NotFound: there is no such tool.
            TimedOut: no result within `timeout` seconds; the call goes on.
        """
        return msgspec.convert(self._pending.wait(timeout), m.ToolResult)

    def cancel(self) -> bool:
        """False: it has ended already."""
        return self._calls.cancel(self._pending.id)


class ToolCalls(Calls):
    def tools(self) -> list[m.Spec]:
        """Those that the caller may call, with the schemas of their arguments."""
        return self.toolboxes().tools

    def toolboxes(self) -> m.Tools:
        """As `tools`, and the toolboxes that they are from: those that could not be started too."""
        return self._call(m.Tools, "tool.list")

    def call_tool(
        self, name: str, args: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> ToolCall:
        """Start a call; several may be on their way. `timeout`: seconds that it may take in all."""
        return ToolCall(
            self, self.start("tool.call", name=name, args=dict(args or {}), timeout=timeout)
        )
