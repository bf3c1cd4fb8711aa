"""Who speaks on a connection: what a hello makes of its peer, as Linux names that."""

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
from .entry.trap import Session
from .gateway.client import GatewayClient
from .process import Process
from .processes.lifecycle import Lifecycle

LOOKS = 8  # at who is above a process, until two agree


class Greeter:
    """Makes a process of whoever says hello. `is_here` knows by its route whether the process that
    made a connection still runs."""

    def __init__(
        self, config: Config, boot: str, lifecycle: Lifecycle, gateway: GatewayClient,
        is_here: Callable[[bytes], bool],
    ) -> None:  # fmt: skip
        self.config, self.boot, self.lifecycle, self.gateway = config, boot, lifecycle, gateway
        self.table, self.events, self.is_here = lifecycle.table, lifecycle.events, is_here
        self.init_pid = os.getppid()

    def hello(self, session: Session, args: Hello) -> Welcome:
        """Make `session` speak for a process: the token's, or a new client's."""
        if args.version != wire.ABI_VERSION:
            raise BadVersion(
                f"the caller speaks ABI version {args.version}, this kernel {wire.ABI_VERSION}",
                "use the SDK that came with this kernel",
            )
        self.lifecycle.trap.greet(session)
        spawn = None
        if args.back is not None:
            process = self.lifecycle.trap.back(session, args.back)
        elif args.token is not None:
            process, spawn = self._redeem(session, args.token)
        elif session.key:
            process = self._remote(session, args.name)
        else:
            process = self._client(session, args.name)
        if args.back is None:
            self.lifecycle.trap.bind(session, process)
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
        for birth in self.lifecycle.births.values():
            process = birth.process
            if secrets.compare_digest(birth.token, token):
                # init's word of the OS pid may come later than the agent's first message
                if process.os_pid not in (0, session.os_pid):
                    break
                if not is_child(session.os_pid, self.init_pid):
                    break
                self._check_here(session)
                if process.os_pid == 0:
                    self.lifecycle.born(birth, session.os_pid)
                if process.state != "ending" and not birth.greeted:
                    process.move("running")
                birth.greeted = True
                return process, birth.spawn
        raise BadToken(
            "the token is wrong, used up, or another process's", "an agent says hello once"
        )

    def _client(self, session: Session, name: str | None) -> Process:
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
        """What was found out of its pid is so of whoever made the connection, if that still runs.
        Raises Denied."""
        if not self.is_here(session.route):
            raise Denied("the process that made this connection has ended", "make another")

    def _remote(self, session: Session, name: str | None) -> Process:
        """A person elsewhere, or an agent: that may do what the groups say that it was put into."""
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


def is_child(os_pid: int, init_pid: int) -> bool:
    """Whether init itself started this process: an agent's child may have the agent's token."""
    try:
        return psutil.Process(os_pid).ppid() == init_pid
    except psutil.NoSuchProcess:
        return False


def may_be_client(os_pid: int, init_pid: int) -> bool:
    """Whether a connection without a token is a person's: its process does not descend from init.

    An agent that says hello without its token would otherwise get a client's rights.
    """
    try:
        owner = psutil.Process(os_pid).uids().real
    except psutil.NoSuchProcess:
        return False
    return owner == os.getuid() and init_pid not in ancestors(os_pid, init_pid)


def ancestors(os_pid: int, unknown: int) -> list[int]:
    """The processes above one, as far as they are to be seen; `unknown` where they changed all the
    while.

    Read twice: what ends in between has its children go to another, and its pid may be a third's.
    """
    before: list[int] = []
    for _ in range(LOOKS):
        found = _ancestors(os_pid)
        if found and found == before:
            return found
        before = found
    return [unknown]


def _ancestors(os_pid: int) -> list[int]:
    """Ends with 0, unless one of them is not to be seen, or has just ended."""
    found = [os_pid]
    while found[-1]:
        try:
            stat = Path(f"/proc/{found[-1]}/stat").read_bytes()
        except OSError:
            break
        found.append(int(stat.rpartition(b")")[2].split()[1]))
    return found[1:]
