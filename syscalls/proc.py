"""The messages about processes: what each `proc.` call takes, and what it answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from .base import CtxId, Message, Name, Pid, Reply, Seconds
from .rules import Manifest

Nice = Annotated[int, Meta(ge=-20, le=19)]
Kind = Literal["agent", "client", "remote"]  # client: a person's; remote: an agent elsewhere
Signal = Literal["TERM", "KILL", "STOP", "CONT"]
ProcessState = Literal["starting", "running", "stopped", "ending", "zombie"]


Amount = Annotated[int, Meta(ge=0)]


class Limits(Message):
    """The limits of one agent; None is no limit. A call that would pass one ends with `limit`.

    Tokens, mem_bytes and children are budgets that all agents below it draw from as well.
    """

    tokens: Amount | None = None  # prefilled plus decoded, all calls
    wall: Seconds | None = None  # since the start of the process
    memory: Amount | None = None  # resident set
    mem_bytes: Amount | None = 64 << 20  # of keys and values in its memory
    contexts: Amount | None = 64  # open at once
    queue: Amount | None = 256  # messages waiting, and calls waiting
    children: Amount | None = 512  # alive at once, theirs too


class NewLimits(Message):
    """Limits to be set. One that is left out stays: as it is, or for a spawn as its parent has it,
    or where a person spawns as the settings say."""

    tokens: Amount | UnsetType | None = UNSET
    wall: Seconds | UnsetType | None = UNSET
    memory: Amount | UnsetType | None = UNSET
    mem_bytes: Amount | UnsetType | None = UNSET
    contexts: Amount | UnsetType | None = UNSET
    queue: Amount | UnsetType | None = UNSET
    children: Amount | UnsetType | None = UNSET


AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\0]*\Z", max_length=4096)]


class SandboxGrants(Message, kw_only=True):
    """The files and ports that the sandbox lets an agent's process use."""

    read: Annotated[list[AbsolutePath], Meta(max_length=256)] = []  # files and folders
    write: Annotated[list[AbsolutePath], Meta(max_length=256)] = []
    ports: Annotated[list[Annotated[int, Meta(ge=1, le=65535)]], Meta(max_length=256)] = []  # TCP
    processes: bool = False  # whether it may start any itself
    all_walls: bool = False  # refuse to start if this Linux lacks some part of the sandbox


class Spawn(Message):
    """Start `program`: a registered name, a path to a .py file that has an Agent, or an executable.

    An executable gets `args`; an agent gets `task` as the argument of `run`.
    """

    program: Annotated[str, Meta(min_length=1, max_length=4096)]
    args: Annotated[list[str], Meta(max_length=256)] = []
    task: Any = None
    name: Name | None = None
    limits: NewLimits | None = None
    nice: Nice | None = None  # the parent's unless given
    cwd: Annotated[str, Meta(max_length=4096)] | None = None  # its own folder unless given
    contexts: Annotated[list[CtxId], Meta(max_length=64)] = []  # of the caller: it gets forks
    manifest: Manifest | None = None  # what it may do, of what the caller may
    reach: SandboxGrants | None = None  # besides those of all agents; of an agent, part of its own


class Spawned(Reply):
    pid: Pid


class Exit(Message):
    code: Annotated[int, Meta(ge=0, le=255)] = 0
    result: Any = None


class Wait(Message):
    pid: Pid | None = None  # None: any child
    timeout: Seconds | None = None


class Exited(Reply):
    pid: Pid
    name: str
    code: int  # as a shell gives it: 128 + signal for a death by signal
    reason: str  # "exit", "signal KILL", "limit wall", "parent gone", "not reading", ...
    result: Any = None
    output_lost: int = 0  # bytes that it printed and a full disk had no room for


class Kill(Message):
    pid: Pid
    signal: Signal = "TERM"


class SetNice(Message):
    nice: Nice
    pid: Pid | None = None


class NiceReply(Reply):
    nice: int


class SetLimits(Message):
    """Read limits; with `limits`, change those. An agent can only tighten its own."""

    pid: Pid | None = None
    limits: NewLimits | None = None


class Ps(Message):
    all: bool = False  # clients and the dead as well


class ProcessInfo(Reply):
    pid: Pid
    parent: Pid
    name: str
    kind: Kind
    state: ProcessState
    os_pid: int
    nice: int
    age: float
    cpu: float  # user + system
    memory: int  # resident set
    contexts: int
    queue: int  # messages waiting
    tokens: int  # prefilled plus decoded
    calls: int  # system calls made
    generations: int  # finished
    waiting: float  # total of all generations
    switches: int
    code: int | None
    reason: str
    turnaround: float = 0.0  # total of the generations that came to their end
    ttft: float | None = None  # mean over the generations that drew a token
    principal: str = ""  # its name below those of the agents that started it; "": a client
    tool: str = ""  # the toolbox that it serves as a worker; "": it is none


class Log(Message):
    """Read what an agent wrote to stdout and stderr, from `offset` (negative: from the end)."""

    pid: Pid
    offset: int = 0
    wait: Seconds = 0.0  # for more to come, when there is nothing to read


class LogPart(Reply):
    data: bytes
    offset: int  # where to read on
    ended: bool  # the process has ended and all is read
