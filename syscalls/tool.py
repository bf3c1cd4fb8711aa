"""The messages of the tool manager: tools that are called, and those who serve them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from .base import Id, Message, Pid, Reply

ToolName = Annotated[
    str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_./-]+)?\Z", max_length=128)
]
BoxName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]*\Z", max_length=48)]
Amount = Annotated[float, Meta(ge=-1e18, le=1e18)]  # finite
Schema = dict[str, Any]  # JSON Schema


class Spec(Reply, kw_only=True):
    """A tool: what it does, and what it takes."""

    name: ToolName  # "calculate", "sql.query"; of an MCP server "SERVER.TOOL"
    description: Annotated[str, Meta(max_length=8192)]
    schema: Schema  # of the arguments: an object
    result: Schema | None = None
    effect: bool = False  # it changes something: what is interrupted is never done again
    exclusive: Annotated[str, Meta(max_length=64)] = ""  # of those with the same word one runs
    limit: Annotated[int, Meta(ge=1, le=1024)] = 8  # of it run at once
    timeout: Annotated[float, Meta(gt=0, le=86400)] = 60.0  # seconds, unless its caller says less


class Box(Reply):
    """A toolbox: a program that serves tools, or an MCP server."""

    name: str
    tools: int
    workers: list[Pid]
    error: str  # why its last worker did not start


class Tools(Reply):
    tools: list[Spec]  # that the caller may call
    boxes: list[Box]


class CallTool(Message):
    name: ToolName
    args: dict[str, Any] = field(default_factory=dict)
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None  # seconds; else the tool's own


class ToolProgress(Reply):
    done: float
    total: float | None
    message: str


class ToolResult(Reply):
    """The value that a tool returned. One too long for a reply is in the caller's storage."""

    value: Any
    owner: str = ""  # where all of it is stored, where `value` is how it begins
    stored: str = ""  # the path there
    size: int = 0  # bytes of all of it


class Offer(Message):
    """Offer tools, as a worker, besides those that it has offered before."""

    tools: Annotated[list[Spec], Meta(max_length=512)]
    anew: bool = False  # what it has offered before it does not serve any more


class Serve(Message):
    """Take jobs, as a worker: one piece each."""

    at_once: Annotated[int, Meta(ge=1, le=1024)] = 1


class Job(Reply):
    """A call for a worker to run; with `cancelled`, one to stop."""

    id: int
    tool: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    caller: str = ""  # its principal
    cancelled: bool = False


class JobProgress(Message):
    id: Id
    done: Amount
    total: Amount | None = None
    message: Annotated[str, Meta(max_length=1024)] = ""


class JobDone(Message):
    """The end of a job: a result, or what went wrong, for a model to read."""

    id: Id
    value: Any = None
    stored: Annotated[str, Meta(max_length=512)] = ""
    size: Annotated[int, Meta(ge=0)] = 0
    error: Annotated[str, Meta(max_length=16384)] | None = None
    code: Literal["tool.failed", "tool.arguments"] = "tool.failed"


class McpServer(Message, kw_only=True):
    """An MCP server, as its worker is told of it: a program to start, an address, or the error in
    its entry in the settings."""

    name: BoxName
    wrong: str = ""
    command: str = ""
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str = ""  # of streamable HTTP, where there is no command
    headers: dict[str, str] = field(default_factory=dict)
    limit: Annotated[int, Meta(ge=1, le=1024)] = 8  # of each of its tools run at once
    timeout: Annotated[float, Meta(gt=0, le=86400)] = 60.0  # seconds, of each call
