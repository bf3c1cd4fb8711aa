"""The worker of a toolbox that is an MCP server: the kernel's jobs become calls of the server.

The server is a child of this process, in the same sandbox. If either ends, so does the other, and
the kernel starts another worker when it needs one.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from msgspec import convert

from aios.agents.mcp.connection import McpConnection, connected, leaf
from aios.agents.mcp.transport import DNS_OVER_TCP
from aios.agents.runtime.agent import Agent
from aios.agents.runtime.worker import reply
from aios.agents.sdk.aios import Aios
from aios.agents.sdk.async_calls import AsyncCalls
from aios.syscalls.errors import AiosError, KernelGone, ToolArguments, ToolCrashed
from aios.syscalls.tool import Job, McpServer

MIN_AT_ONCE = 16  # jobs, or as many as one tool may have
PROGRESS_INTERVAL_S = 0.1  # between two reports of progress of a job


class McpWorker(Agent):
    name = "mcp"

    def run(self, task: Any) -> None:
        os.environ.update(DNS_OVER_TCP)
        server = convert(task["task"], McpServer)
        if server.wrong:
            raise SystemExit(server.wrong)
        try:
            asyncio.run(serve(self.aios, server))
        except (AiosError, ExceptionGroup) as error:
            cause = leaf(error)
            if not isinstance(cause, AiosError):
                raise
            raise SystemExit(cause.message) from error


async def serve(aios: Aios, server: McpServer) -> None:
    """Serve until the server ends. Raises ToolCrashed then, or KernelGone."""
    calls = AsyncCalls(aios)
    async with connected(server) as connection, asyncio.TaskGroup() as group:
        worker = Jobs(calls, connection, group)
        worker.offer()
        group.create_task(worker.take())
        while True:
            await connection.changed()
            worker.offer()


class Jobs:
    def __init__(
        self, calls: AsyncCalls, connection: McpConnection, group: asyncio.TaskGroup
    ) -> None:
        self.calls, self.connection, self.group = calls, connection, group
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def offer(self) -> None:
        """Offer the server's tools in place of those offered before, if by another worker."""
        specs = self.connection.specs
        self.calls.blocking(lambda: self.calls.aios.offer_tools(specs, anew=True))

    async def take(self) -> None:
        """Take jobs, and do each in a task of its own."""
        at_once = max(MIN_AT_ONCE, self.connection.server.limit)
        call = self.calls.start("tool.serve", at_once=at_once)
        async for body in self.calls.pieces(call):
            job = convert(body, Job)
            if not job.cancelled:
                self.tasks[job.id] = self.group.create_task(self.do(job))
            elif job.id in self.tasks:
                self.tasks.pop(job.id).cancel()
                self.say("tool.done", id=job.id)  # its place is free again

    async def do(self, job: Job) -> None:
        try:
            value = await self.connection.call(job.tool, job.args, Reports(self, job.id))
            end = self.calls.blocking(lambda: reply(self.calls.aios, job, value))
        except (ToolCrashed, KernelGone):
            raise
        except AiosError as error:
            code = error.code if isinstance(error, ToolArguments) else "tool.failed"
            end = {"error": error.message[:16_000], "code": code}
        del self.tasks[job.id]
        self.say("tool.done", id=job.id, **end)

    def say(self, name: str, **args: Any) -> None:
        """Make a call and ignore its reply: a job that is over is NotFound."""
        self.calls.start(name, **args)


class Reports:
    """Reports a job's progress to the kernel, at most every PROGRESS_INTERVAL_S."""

    def __init__(self, jobs: Jobs, job: int) -> None:
        self.jobs, self.job = jobs, job
        self.next = 0.0

    def __call__(self, done: float, total: float | None, message: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self.next:
            self.next = now + PROGRESS_INTERVAL_S
            self.jobs.say(
                "tool.progress", id=self.job, done=done, total=total, message=message[:1024]
            )
