"""The process table: states, parents and limits of all processes. Pure: the time is passed in.

starting -> running <-> stopped          what init did not start is running from the start
starting, running, stopped -> ending     told to end, but not gone yet
any of them -> zombie                    gone; kept until its parent is gone too, or there are
                                         too many zombies
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from aios.syscalls.errors import BadInput, LimitReached, NotFound
from aios.syscalls.proc import Kind, Limits, ProcessInfo, ProcessState, SandboxGrants
from aios.syscalls.rules import Manifest

from .lib.callbacks import ignore
from .lib.patterns import check_visible
from .lib.trees import above, in_tree, leaves_room, root

MAX_DEPTH = 64  # of processes below each other
MAX_LABELS, MAX_LABEL_LETTERS = 64, 4096  # of one process; beyond that it has one label:
MANY = "many"  # it stands for any label
PATH_STATES = 16  # past states that an IllegalMove shows

MOVES: dict[ProcessState, frozenset[ProcessState]] = {
    "starting": frozenset({"running", "stopped", "ending", "zombie"}),
    "running": frozenset({"stopped", "ending", "zombie"}),
    "stopped": frozenset({"starting", "running", "ending", "zombie"}),
    "ending": frozenset({"zombie"}),
    "zombie": frozenset(),
}


class IllegalMove(AssertionError):
    """A process was to change state against MOVES: a defect of the kernel."""


NOTHING = msgspec.msgpack.encode(None)


class QueuedMessage(msgspec.Struct):
    """A message in a mailbox, still encoded: decoded objects may take forty times the space."""

    sender: int
    principal: str = ""
    data: bytes = b""


@dataclass
class Process:
    """A row of the process table."""

    pid: int
    parent: int
    name: str
    kind: Kind
    os_pid: int  # 0: not known yet, or a remote process
    nice: int
    limits: Limits
    started: float
    state: ProcessState
    path: list[ProcessState] = field(default_factory=list)  # its last states
    code: int | None = None
    reason: str = ""
    output_lost: int = 0  # bytes that it printed and a full disk had no room for
    result: bytes = NOTHING  # in msgpack
    reported: bool = False  # proc.exit has set code and result
    waited: bool = False  # a wait for any child has returned it
    cpu: float = 0.0
    memory: int = 0
    tokens: int = 0
    calls: int = 0
    generations: int = 0
    waiting: float = 0.0
    turnaround: float = 0.0
    ttft_total: float = 0.0
    first_tokens: int = 0  # generations that have drawn a token
    switches: int = 0
    contexts: set[int] = field(default_factory=set)
    mailbox: dict[int, QueuedMessage] = field(default_factory=dict)  # by number, the oldest first
    children: set[int] = field(default_factory=set)
    ended: float = 0.0
    principal: str = ""  # owner of memory and storage: its name below its ancestors'
    manifest: Manifest | None = None  # its rights; None: those of the group "agents"
    reach: SandboxGrants = field(default_factory=SandboxGrants)  # besides those of all agents
    labels: set[str] = field(default_factory=set)  # taint labels of what it has read from others
    key: str = ""  # of a remote process, in Z85
    tool: str = ""  # the toolbox, of a worker
    secret: bytes = b""  # to reconnect with after the kernel's death
    changed: set[int] = field(default_factory=set)  # the table's set of rows to journal
    spent: set[int] = field(default_factory=set)  # the table's set of rows whose tokens changed
    drawn: int = 0  # tokens used by it and all its descendants
    below: int = 0  # live agents below it, without workers
    # The process and its ancestors, the nearest first.
    line: list[Process] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.line = self.line or [self]

    @property
    def alive(self) -> bool:
        return self.state != "zombie"

    def move(self, state: ProcessState) -> None:
        if state not in MOVES[self.state]:
            raise IllegalMove(f"process {self.pid}: {' '.join(self.path)} {self.state} to {state}")
        self.path = [*self.path[1 - PATH_STATES :], self.state]
        self.state = state
        self.touch()

    def touch(self) -> None:
        """Mark the row for the journal: something changed that must outlive the kernel."""
        self.changed.add(self.pid)

    def check_tokens(self, tokens: int) -> None:
        """Raise LimitReached where it, or the tree of one above it, may not use that many more."""
        for each in self.line:
            limit = each.limits.tokens
            if limit is not None and each.drawn + tokens > limit:
                below = " with all below it" if each.drawn != each.tokens else ""
                raise LimitReached(
                    f"process {each.pid}{below} has used {each.drawn} of {limit} tokens, and needs "
                    f"{tokens} more",
                    "give it more with --limit tokens=N, or proc.limits",
                )

    def spend(self, tokens: int) -> None:
        """Charge tokens to the budgets of the process and of all its ancestors."""
        self.tokens += tokens
        for each in self.line:
            each.drawn += tokens
            each.spent.add(each.pid)

    @property
    def marks(self) -> set[str]:
        """The taint labels of all that it writes: its own, and those of what it has read.

        A person's words need none.
        """
        return self.labels | ({f"msg:{self.principal}"} if self.kind != "client" else set())

    def taint(self, labels: Set[str]) -> None:
        """Add the labels of what it has read. A person's process is never tainted."""
        if self.kind != "client" and not labels <= self.labels:
            self.labels |= labels
            if len(self.labels) > MAX_LABELS or sum(map(len, self.labels)) > MAX_LABEL_LETTERS:
                self.labels = {MANY}
            self.touch()

    def hear(self, other: Process) -> None:
        """Copy the taint labels of another process whose words it has read."""
        if other is not self:
            self.taint(other.marks)

    def info(self, now: float) -> ProcessInfo:
        return ProcessInfo(
            pid=self.pid,
            parent=self.parent,
            name=self.name,
            kind=self.kind,
            state=self.state,
            os_pid=self.os_pid,
            nice=self.nice,
            age=(now if self.alive else self.ended) - self.started,
            cpu=self.cpu,
            memory=self.memory,
            contexts=len(self.contexts),
            queue=len(self.mailbox),
            tokens=self.tokens,
            calls=self.calls,
            generations=self.generations,
            waiting=self.waiting,
            turnaround=self.turnaround,
            ttft=self.ttft_total / self.first_tokens if self.first_tokens else None,
            principal=self.principal,
            tool=self.tool,
            switches=self.switches,
            code=self.code,
            reason=self.reason,
        )


def named_by(program: str) -> str:
    """Return the default name of an agent: its program's, in the letters that names may have.

    Raises:
        BadInput: the program's name has invisible characters.
    """
    stem = Path(program).stem
    check_visible("a program's name", stem)
    name = re.sub(r"[^\w.+-]", "-", stem)[:64]
    return name if name.strip(".") else "agent"


def check_principal(name: str) -> None:
    """Refuse a name that cannot be an agent's principal. Raises BadInput."""
    check_visible("a principal", name)
    begin, *names = name.split("/")
    if begin or not names or "" in names:
        raise BadInput(f"no principal: {name!r}", "it is like /writer/helper")


class ProcessTable:
    """All processes by pid. Pid 0 is init: it has no row, and is the parent of clients' orphans."""

    def __init__(self, max_agents: int, max_clients: int, max_dead: int) -> None:
        self.max = {"agent": max_agents, "client": max_clients, "remote": max_clients}
        self.max_dead = max_dead
        self.rows: dict[int, Process] = {}
        self.changed: set[int] = set()
        self.spent: set[int] = set()
        self.by_os_pid: dict[int, Process] = {}
        self.last = 0
        self.on_forget: Callable[[Process], None] = ignore

    def add(
        self, kind: Kind, name: str, parent: int, nice: int, limits: Limits,
        now: float, os_pid: int = 0, tool: str = "",
    ) -> Process:  # fmt: skip
        """Add a row: an agent `starting`, a client `running`.

        Raises:
            LimitReached: too many of its kind are alive, or below one of its ancestors.
        """
        above = self.rows.get(parent)
        principal = f"{above.principal if above is not None else ''}/{name}"
        self._check_room(kind, "" if kind == "agent" and above is None else root(principal))
        line = above.line if above is not None else []
        for each in line if not tool else []:
            if each.limits.children is not None and each.below >= each.limits.children:
                raise LimitReached(
                    f"{each.below} agents are alive below process {each.pid}: its limit",
                    "end some of them, or give it another: `limits` of its spawn",
                )
        if len(line) >= MAX_DEPTH:
            raise LimitReached(
                f"{MAX_DEPTH} processes are above each other: no more below", "see ps"
            )
        self.last += 1
        state: ProcessState = "starting" if kind == "agent" else "running"
        process = Process(self.last, parent, name, kind, os_pid, nice, limits, now, state)
        if kind != "client":
            process.principal = principal
        process.tool = tool
        process.secret = secrets.token_bytes(16)
        self.insert(process)
        return process

    def _check_room(self, kind: Kind, tree: str) -> None:
        """Raises LimitReached. A tree of agents has half of the room that others leave; what a
        person starts here has all."""
        alive, most = [each for each in self.live() if each.kind == kind], self.max[kind]
        if len(alive) >= most:
            raise LimitReached(f"{most} {kind}s are alive: no more", "see config.toml")
        held = in_tree(tree, (each.principal for each in alive))
        if kind != "client" and tree and not leaves_room(held, len(alive), most):
            raise LimitReached(
                f"{tree} and all below it have {held} of {most} {kind}s: the rest is for others",
                "end some of them",
            )

    def insert(self, process: Process) -> None:
        """Insert a row, new or out of the journal."""
        self.last = max(self.last, process.pid)
        process.changed, process.spent = self.changed, self.spent
        process.touch()
        self.rows[process.pid] = process
        above = self.rows.get(process.parent)
        process.line = [process, *(above.line if above is not None else [])]
        if above is not None:
            above.children.add(process.pid)
        if process.alive and not process.tool:
            for each in process.line[1:]:
                each.below += 1
        if process.kind == "agent" and process.os_pid and process.alive:
            self.by_os_pid[process.os_pid] = process

    def bind(self, process: Process, os_pid: int) -> None:
        process.os_pid = os_pid
        self.by_os_pid[os_pid] = process
        process.touch()

    def live(self) -> Iterator[Process]:
        return (process for process in self.rows.values() if process.alive)

    def get(self, pid: int) -> Process:
        """Return a row. Raises NotFound for a pid that is not in the table."""
        if pid not in self.rows:
            raise NotFound(f"no process {pid}", "`aios ps --all` lists them")
        return self.rows[pid]

    def find(self, who: int | str, caller: str = "") -> Process:
        """Find a live process by pid, or by a name as the principal `caller` means it.

        A name is looked up below the caller, then beside it, then beside each ancestor, the nearest
        first, and last among the processes of persons. So nobody gets another's messages by taking
        its name. The oldest of several processes is found, and never a worker.

        Raises:
            NotFound: there is no such process.
        """
        if isinstance(who, int):
            if self.is_alive(who):
                return self.rows[who]
        else:
            scopes = (caller, *above(caller), "") if caller else ("",)
            names = [who] if who.startswith("/") else [f"{scope}/{who}" for scope in scopes]
            found: dict[str, Process] = {}
            for process in self.live():
                if not process.tool:
                    own = process.principal or ("" if who.startswith("/") else f"/{process.name}")
                    found.setdefault(own, process)
            for name in names:
                if name in found:
                    return found[name]
        raise NotFound(f"no live process {who!r}", "`aios ps` lists them; a principal names one")

    def is_alive(self, pid: int) -> bool:
        return pid in self.rows and self.rows[pid].alive

    def is_above(self, pid: int, process: Process) -> bool:
        """Tell whether `pid` is an ancestor of `process`."""
        return any(above.pid == pid for above in process.line[1:])

    def end(self, process: Process, code: int, reason: str, now: float) -> list[Process]:
        """Make a process a zombie, forget its dead children, and return those that are alive."""
        if not process.reported:
            process.code = code
        process.reason = process.reason or reason
        process.ended = now
        process.move("zombie")
        process.mailbox.clear()
        for each in process.line[1:] if not process.tool else []:
            each.below -= 1
        self.by_os_pid.pop(process.os_pid, None)
        left = [self.rows[child] for child in process.children]
        for child in left:
            if not child.alive:
                self.forget(child)
        if process.kind != "agent":
            self.forget(process)
        self._trim()
        return [child for child in left if child.alive]

    def forget(self, process: Process) -> None:
        """Remove a row."""
        del self.rows[process.pid]
        process.touch()
        self.on_forget(process)
        above = self.rows.get(process.parent)
        if above is not None:
            above.children.discard(process.pid)

    def _trim(self) -> None:
        """Forget zombies while there are too many.

        Workers go first, then the oldest of the tree of agents that has most. So no tree can push
        out the ends of others, for which somebody may still wait.
        """
        dead = [process for process in self.rows.values() if not process.alive]
        if len(dead) <= self.max_dead:
            return
        trees = Counter(root(process.principal) for process in dead)
        while len(dead) > self.max_dead:
            first = min(dead, key=lambda p: (not p.tool, -trees[root(p.principal)], p.ended))
            trees[root(first.principal)] -= 1
            dead.remove(first)
            self.forget(first)

    def check(self) -> list[str]:
        """Return every broken invariant in words."""
        problems = []
        counted = (each for each in self.live() if not each.tool)
        below = Counter(above.pid for each in counted for above in each.line[1:])
        for pid, process in self.rows.items():
            if process.pid != pid:
                problems.append(f"row {pid} holds process {process.pid}")
            if not process.alive and (process.mailbox or process.contexts):
                problems.append(f"dead process {pid} holds messages or contexts")
            bound = process.os_pid and process.alive and process.kind == "agent"
            if bound and self.by_os_pid.get(process.os_pid) is not process:
                problems.append(f"process {pid} is not found by its OS pid {process.os_pid}")
            if process.below != below[pid]:
                problems.append(f"process {pid} counts {process.below} below it, not {below[pid]}")
            for child in process.children:
                if child not in self.rows or self.rows[child].parent != pid:
                    problems.append(f"process {pid} lists {child}, not a child of it")
        return problems
