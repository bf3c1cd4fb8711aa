"""Turn a hello into a process: identify the peer by what Linux says about its connection."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from aios.syscalls import wire
from aios.syscalls.connection import Hello, Welcome
from aios.syscalls.errors import BadToken, BadVersion, Denied
from aios.syscalls.proc import Limits, Spawn
from aios.syscalls.rules import Manifest

from .config import Config
from .entry.call import Session
from .gateway.client import GatewayClient
from .process import Process
from .processes.lifecycle import Lifecycle

MAX_READINGS = 8  # of the processes above one, until two agree
MAX_TOLD = 1000  # connections that were cut off, until the oldest is told again


class Greeter:
    """Makes a process of each peer that says hello.

    `is_here` tells of a route whether the process that made the connection still runs.
    """

    def __init__(
        self, config: Config, boot: str, lifecycle: Lifecycle, gateway: GatewayClient,
        is_here: Callable[[bytes], bool],
    ) -> None:  # fmt: skip
        self.config, self.boot, self.lifecycle, self.gateway = config, boot, lifecycle, gateway
        self.sessions = lifecycle.sessions
        self.table, self.events, self.is_here = lifecycle.table, lifecycle.events, is_here
        self.told: dict[tuple[int, str], None] = {}  # connections that were cut off: OS pid, why
        self.init_pid = os.getppid()

    def hello(self, session: Session, args: Hello) -> Welcome:
        """Make `session` speak for a process: the token's, or a new client's."""
        if args.version != wire.ABI_VERSION:
            raise BadVersion(
                f"the caller speaks ABI version {args.version}, this kernel {wire.ABI_VERSION}",
                "use the SDK that came with this kernel",
            )
        self.sessions.greet(session)
        spawn = None
        if args.back is not None:
            process = self.sessions.back(session, args.back)
        elif args.token is not None:
            process, spawn = self._redeem(session, args.token)
        elif session.key:
            process = self._remote(session, args.name)
        else:
            process = self._client(session, args.name)
        if args.back is None:
            self.sessions.bind(session, process)
        return Welcome(
            pid=process.pid,
            name=process.name,
            kind=process.kind,
            version=wire.ABI_VERSION,
            boot=self.boot,
            program=spawn.program if spawn else "",
            task=spawn.task if spawn else None,
            contexts=sorted(process.contexts),
            secret=process.secret,
        )

    def _redeem(self, session: Session, token: bytes) -> tuple[Process, Spawn]:
        """Return the spawned process that the token belongs to.

        Raises:
            BadToken: the token is wrong or used up, or the peer is not the spawned process.
        """
        for pending in self.lifecycle.pending_spawns.values():
            process = pending.process
            if secrets.compare_digest(pending.token, token):
                # init's word of the OS pid may come later than the agent's first message
                if process.os_pid not in (0, session.os_pid):
                    break
                if not is_child(session.os_pid, self.init_pid):
                    break
                self._check_here(session)
                if process.os_pid == 0:
                    self.lifecycle.has_started(pending, session.os_pid)
                if process.state != "ending" and not pending.greeted:
                    process.move("running")
                pending.greeted = True
                return process, pending.spawn
        raise BadToken(
            "the token is wrong, used up, or another process's", "an agent says hello once"
        )

    def _client(self, session: Session, name: str | None) -> Process:
        """Add a person's process.

        Raises:
            Denied: an agent started the peer.
        """
        if not may_be_client(session.os_pid, self.init_pid):
            raise Denied(
                "this process was started by an agent, and has no token of its own",
                "an agent has a connection, self.aios; programs become agents by proc.spawn",
            )
        self._check_here(session)
        free = Limits(contexts=None, queue=1024)
        now = time.monotonic()
        return self.table.add("client", name or "client", 0, 0, free, now, session.os_pid)

    def _check_here(self, session: Session) -> None:
        """Make sure that all that was found out about the pid is true of the peer.

        Raises:
            Denied: the process that made the connection has ended.
        """
        if not self.is_here(session.route):
            raise Denied("the process that made this connection has ended", "make another")

    def _remote(self, session: Session, name: str | None) -> Process:
        """Add a remote person, or a remote agent, which may do only what its groups allow."""
        allowed, now = self.gateway.allowed_key(session.key), time.monotonic()
        if allowed.person:
            limits = Limits(contexts=None, queue=1024)
            process = self.table.add("client", name or allowed.name, 0, 0, limits, now)
        else:
            process = self.table.add("remote", allowed.name, 0, 0, self.config.limits, now)
            process.manifest = Manifest()
        process.key = session.key
        self.events.publish("process", "connected", process.pid, key=session.key)
        return process

    def cut_off(self, os_pid: int, why: str) -> None:
        """Publish that a connection was cut off, once for each OS pid and reason."""
        if (os_pid, why) in self.told:
            return
        if len(self.told) == MAX_TOLD:
            del self.told[next(iter(self.told))]
        self.told[os_pid, why] = None
        rows = self.table.rows.values()  # of several that had it one after the other the last
        pid = max((row.pid for row in rows if row.os_pid == os_pid), default=0)
        self.events.publish("process", "refused", pid, call="connection", object=why)


def is_child(os_pid: int, init_pid: int) -> bool:
    """Tell whether init itself started this process: an agent's child may have the agent's
    token.
    """
    try:
        return psutil.Process(os_pid).ppid() == init_pid
    except psutil.NoSuchProcess:
        return False


def may_be_client(os_pid: int, init_pid: int) -> bool:
    """Tell whether a connection without a token is a person's: the process does not descend from
    init.

    An agent that says hello without its token would otherwise get a person's rights.
    """
    try:
        owner = psutil.Process(os_pid).uids().real
    except psutil.NoSuchProcess:
        return False
    return owner == os.getuid() and init_pid not in ancestors(os_pid, init_pid)


def ancestors(os_pid: int, unknown: int) -> list[int]:
    """List the pids above a process, or only `unknown` if they keep changing.

    They are read until two readings agree: when one ends in between, its child gets another parent,
    and its pid may get another process.
    """
    before: list[int] = []
    for _ in range(MAX_READINGS):
        found = _ancestors(os_pid)
        if found and found == before:
            return found
        before = found
    return [unknown]


def _ancestors(os_pid: int) -> list[int]:
    """List the pids above a process once. The list ends with 0, unless one cannot be read."""
    found = [os_pid]
    while found[-1]:
        try:
            stat = Path(f"/proc/{found[-1]}/stat").read_bytes()
        except OSError:
            break
        found.append(int(stat.rpartition(b")")[2].split()[1]))
    return found[1:]
