"""The process table: who runs, in which state, whose child, under which limits. Pure: no sockets,
no signals; the time is passed in.

    starting -> running <-> stopped          what is no agent of init's is running from the start
    starting, running, stopped -> ending     told to end, not gone yet
    any of them -> zombie                    gone; kept until its parent is gone too, or there are
                                             too many of them
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
from aios.syscalls.proc import Kind, Limits, ProcessInfo, ProcessState, Reach
from aios.syscalls.rules import Manifest

from .lib.patterns import check_visible
from .lib.trees import above, root

DEPTH = 64  # processes above each other
LABELS, LABEL_LETTERS = 64, 4096  # that one process keeps; of more it has one alone:
MANY = "many"  # the label of one that has more than are kept: it may be any
PATH = 16  # states that a process was in, for who reads of a defect

MOVES: dict[ProcessState, frozenset[ProcessState]] = {
    "starting": frozenset({"running", "stopped", "ending", "zombie"}),
    "running": frozenset({"stopped", "ending", "zombie"}),
    "stopped": frozenset({"starting", "running", "ending", "zombie"}),
    "ending": frozenset({"zombie"}),
    "zombie": frozenset(),
}


class IllegalMove(AssertionError):
    """A defect of the kernel: a process was to change state against MOVES."""


NOTHING = msgspec.msgpack.encode(None)


class Letter(msgspec.Struct):
    """A message in a mailbox, as it came: the objects that it is made of may take forty times the
    room."""

    sender: int
    principal: str = ""
    data: bytes = b""


@dataclass
class Process:
    pid: int
    parent: int
    name: str
    kind: Kind
    os_pid: int  # 0: it is not known yet, or elsewhere
    nice: int
    limits: Limits
    started: float
    state: ProcessState
    path: list[ProcessState] = field(default_factory=list)  # the states it was in last
    code: int | None = None
    reason: str = ""
    result: bytes = NOTHING  # in msgpack, as a Letter is
    reported: bool = False  # proc.exit told code and result
    waited: bool = False  # a wait for any child has had it
    cpu: float = 0.0
    memory: int = 0
    tokens: int = 0
    calls: int = 0
    generations: int = 0
    waiting: float = 0.0
    turnaround: float = 0.0
    ttft_total: float = 0.0
    first_tokens: int = 0  # generations that drew one
    switches: int = 0
    contexts: set[int] = field(default_factory=set)
    mailbox: dict[int, Letter] = field(default_factory=dict)  # by number, the oldest first
    children: set[int] = field(default_factory=set)
    ended: float = 0.0
    principal: str = ""  # whose memory and storage it uses: its name below those of its ancestors
    manifest: Manifest | None = None  # what it may do; None: the group "agents" says so
    reach: Reach = field(default_factory=Reach)  # through its walls, besides what all reach
    labels: set[str] = field(default_factory=set)  # of what it has read from others
    key: str = ""  # of who is elsewhere, in Z85
    tool: str = ""  # the toolbox that it is a worker of
    secret: bytes = b""  # to come back with after the kernel's death
    changed: set[int] = field(default_factory=set)  # the table's: what is to be journaled
    spent: set[int] = field(default_factory=set)  # likewise, of the tokens alone
    drawn: int = 0  # tokens that it and all that were ever below it have used
    below: int = 0  # agents below it that are alive, workers apart
    # It and those above it, the nearest first.
    line: list[Process] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.line = self.line or [self]

    @property
    def alive(self) -> bool:
        return self.state != "zombie"

    def move(self, state: ProcessState) -> None:
        if state not in MOVES[self.state]:
            raise IllegalMove(f"process {self.pid}: {' '.join(self.path)} {self.state} to {state}")
        self.path = [*self.path[1 - PATH :], self.state]
        self.state = state
        self.touch()

    def touch(self) -> None:
        """What must outlive the kernel has changed."""
        self.changed.add(self.pid)

    def spend(self, tokens: int) -> None:
        """From its own budget, and from those of all above it."""
        self.tokens += tokens
        for each in self.line:
            each.drawn += tokens
            each.spent.add(each.pid)

    @property
    def marks(self) -> set[str]:
        """The labels of all that it says: of itself and of what it has read. A person's words need
        none."""
        return self.labels | ({f"msg:{self.principal}"} if self.kind != "client" else set())

    def taint(self, labels: Set[str]) -> None:
        """Note that it has read what is so labelled. A person's process is never tainted."""
        if self.kind != "client" and not labels <= self.labels:
            self.labels |= labels
            if len(self.labels) > LABELS or sum(map(len, self.labels)) > LABEL_LETTERS:
                self.labels = {MANY}
            self.touch()

    def hear(self, other: Process) -> None:
        """Note that it has read what another process said."""
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
    """Return the name of an agent that was given none: its program's, in the letters of names.

    Raises:
        BadInput: the program's has characters that do not show.
    """
    stem = Path(program).stem
    check_visible("a program's name", stem)
    name = re.sub(r"[^\w.+-]", "-", stem)[:64]
    return name if name.strip(".") else "agent"


def check_principal(name: str) -> None:
    """Raises BadInput for what can be no agent's: its name, below those of who started it."""
    check_visible("a principal", name)
    begin, *names = name.split("/")
    if begin or not names or "" in names:
        raise BadInput(f"no principal: {name!r}", "it is like /writer/helper")


class ProcessTable:
    """All processes by pid. Pid 0 is init: no row, the parent of what clients leave behind."""

    def __init__(self, max_agents: int, max_clients: int, max_dead: int) -> None:
        self.max = {"agent": max_agents, "client": max_clients, "remote": max_clients}
        self.max_dead = max_dead
        self.rows: dict[int, Process] = {}
        self.changed: set[int] = set()
        self.spent: set[int] = set()
        self.by_os_pid: dict[int, Process] = {}
        self.last = 0
        self.on_forget: Callable[[Process], None] = lambda _: None

    def add(
        self, kind: Kind, name: str, parent: int, nice: int, limits: Limits,
        now: float, os_pid: int = 0, tool: str = "",
    ) -> Process:  # fmt: skip
        """A new row: an agent `starting`, a client `running`.

        Raises:
            LimitReached: too many of its kind are alive, or below one of those above it.
        """
        if sum(p.kind == kind for p in self.live()) >= self.max[kind]:
            raise LimitReached(f"{self.max[kind]} {kind}s are alive: no more", "see config.toml")
        above = self.rows.get(parent)
        line = above.line if above is not None else []
        for each in line if not tool else []:
            if each.limits.children is not None and each.below >= each.limits.children:
                raise LimitReached(
                    f"{each.below} agents are alive below process {each.pid}: its limit",
                    "end some of them, or give it another: `limits` of its spawn",
                )
        if len(line) >= DEPTH:
            raise LimitReached(f"{DEPTH} processes are above each other: no more below", "see ps")
        self.last += 1
        state: ProcessState = "starting" if kind == "agent" else "running"
        process = Process(self.last, parent, name, kind, os_pid, nice, limits, now, state)
        if kind != "client":
            process.principal = f"{above.principal if above is not None else ''}/{name}"
        process.tool = tool
        process.secret = secrets.token_bytes(16)
        self.insert(process)
        return process

    def insert(self, process: Process) -> None:
        """A row, new or out of the journal."""
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
        """Raises NotFound for a pid that is not in the table."""
        if pid not in self.rows:
            raise NotFound(f"no process {pid}", "`aios ps --all` lists them")
        return self.rows[pid]

    def find(self, who: int | str, caller: str = "") -> Process:
        """A live process by pid, or by a name as the principal `caller` means it: below it, else
        beside it, else beside one above it, the nearest first, at last among those of persons. So
        nobody hears what is for another because somebody has named it so. Of several the eldest,
        workers apart. Raises NotFound."""
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
        """Whether `pid` is an ancestor of `process`."""
        return any(above.pid == pid for above in process.line[1:])

    def end(self, process: Process, code: int, reason: str, now: float) -> list[Process]:
        """`process` is gone. Its dead children are forgotten; returned are those still alive."""
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
        """The row goes."""
        del self.rows[process.pid]
        process.touch()
        self.on_forget(process)
        above = self.rows.get(process.parent)
        if above is not None:
            above.children.discard(process.pid)

    def _trim(self) -> None:
        """Workers go first, then the oldest of the tree of agents that has most: none of them can
        push out the ends of others, which somebody may yet wait for."""
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
        """What is wrong with the table, if anything."""
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
