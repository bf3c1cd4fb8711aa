"""Build the kernel from its parts, tie them to the loop, and recover the state of the last
kernel.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from aios.syscalls import VERSION
from aios.syscalls.errors import BadInput, Cancelled, DiskFull, StoreDamaged

from .access.approvals import Approvals
from .access.gate import Gate
from .access.grants import Grants, steady
from .audit.checkpoint import Signer
from .audit.coalesce import WINDOW_S
from .audit.log import AuditLog
from .audit.recorder import AuditRecorder, in_a_line
from .config import Config
from .entry.sessions import Sessions
from .entry.trap import Trap
from .events import EventLog
from .gateway.client import GatewayClient
from .handlers import handlers
from .hello import Greeter
from .index.change_feed import ChangeFeed
from .index.client import IndexClient
from .init.protocol import (
    Gone,
    Paused,
    SandboxRefusal,
    Started,
    StartFailed,
    Takeover,
    ToKernel,
    WindUp,
)
from .journal import Journal
from .ledger.ledger import Ledger
from .ledger.outbox import Outbox
from .ledger.recovery import Recovery
from .lib.coroutine import Wait
from .lib.encryption import AeadCodec, ChecksumCodec
from .lib.patterns import quoted
from .llm.contexts import ContextManager
from .llm.core_client import CoreLink
from .llm.generations import Generations
from .llm.prompt import Prompts
from .llm.scheduler.scheduler import Scheduler
from .llm.statistics import Statistics
from .loop import Loop
from .memory.interactions import InteractionLog
from .memory.manager import Memory
from .memory.owners import Owners
from .process import ProcessTable
from .processes.agent_logs import Logs
from .processes.lifecycle import Lifecycle
from .processes.limits import LimitEnforcer
from .processes.mailbox import Mailroom
from .processes.wait import Waiters
from .storage.blobs import open_blobs
from .storage.maintenance import Maintenance
from .storage.manager import Storage
from .storage.shares import Shares
from .store.probe import try_store
from .store.store import NoStore, Store
from .tools.manager import Tools
from .tools.mcp_config import mcp_boxes
from .tools.toolbox import boxes_of

SWEEP_S = 0.1  # between checks of limits, figures and logs
CHECKPOINT_S = 5.0  # between signatures of the audit log
P = ParamSpec("P")
T = TypeVar("T")


class Kernel:
    """All parts of the kernel. `mcp` is the contents of the file of MCP servers.

    Raises:
        HomeBusy: another kernel listens already.
        DiskFull: there is no room for a journal.
    """

    def __init__(
        self, config: Config, init_fd: int, seal: AeadCodec | None = None, mcp: bytes = b""
    ) -> None:
        self.config, self.seal = config, seal
        self.boot = secrets.token_hex(8)
        self.os_pid = os.getpid()
        self.began = time.monotonic()
        self.loop = Loop(config.path, init_fd)
        takeover = self.loop.receive_takeover()
        self.walls = takeover.mechanisms
        patient = bool(takeover.children)
        # The log before the journal: the journal may have nothing that the log lacks.
        self.audit = AuditRecorder(self._opened(self._log, patient=patient))
        self.journal = self._opened(self._journal, patient=patient)
        self.outbox = Outbox(
            self.journal, self.audit.is_safe, self.loop.send_now, self.loop.tell_init
        )
        self.store = self._store(takeover)
        self.events = EventLog(self._note)
        self.table = ProcessTable(config.agents, config.clients, config.dead)
        self._make_stores(config, takeover.system)
        self._make_llm(config)
        self._make_processes(config, mcp)
        self._make_entry(config)
        self._connect()
        self._recover(takeover)

    def _make_stores(self, config: Config, system: str) -> None:
        """Build storage, memory and access control."""
        post, sync = self.loop.post, self.audit.log.sync
        self.blobs = self._or_close(
            open_blobs, config.blobs, config.blobs_options, self.store, post, self.seal
        )
        policy = config.path / "policy.json"
        self.grants = self._or_close(Grants, policy, self.table, self.journal.put, sync, steady())
        feed = ChangeFeed(self.store, self.blobs)
        self.index = IndexClient(config, self.loop, feed, self.events)
        self.storage = Storage(
            self.store, self.blobs, Shares(lambda: self.grants.groups), config.storage_bytes,
            config.blobs, self.index.changed,
        )  # fmt: skip
        self.gate = Gate(self.table, self.grants, self.storage.shared)
        self.approvals = Approvals(self.gate, config.ask_timeout, self.loop.after)
        self.maintenance = Maintenance(self.storage, self.store, post, self.seal)
        self.owners = self._owners(system)
        self.memory = Memory(self.owners)
        self.interactions = InteractionLog(self.owners, config.log_bytes)

    def _make_llm(self, config: Config) -> None:
        self.stats = Statistics()
        self.core = CoreLink(config, self.loop, self.events)
        self.contexts = ContextManager(self.core.drop)
        self.scheduler = self._or_close(Scheduler, config.policy, config.quantum)
        self.prompts = Prompts(self.contexts, self.core.ask)
        self.generations = Generations(
            self.scheduler, self.contexts, self.prompts, self.stats, self.events, self.core.send,
            self.journal.check_running, self.interactions.generated,
        )  # fmt: skip
        self.core.generations = self.generations

    def _make_processes(self, config: Config, mcp: bytes) -> None:
        """Build the parts that start, end and connect processes, and the tools that some serve."""
        loop = self.loop
        self.logs = Logs(config.path / "log", self.table, loop.after)
        self.mailroom = Mailroom(
            loop.after, self.table, self.journal.put, self.interactions.sent,
            self.interactions.received,
        )  # fmt: skip
        self.waiters = Waiters(self.table, loop.after)
        self.sessions = Sessions(self.journal.put, loop.calls.make_stranger)
        ended = [
            self.mailroom.ended, self.storage.uploads.ended, self.memory.ended, self.gate.ended,
            self.grants.ended, lambda process: self.store.forget(process.pid),
        ]  # fmt: skip
        self.lifecycle = Lifecycle(
            config, self.table, self.contexts, self.generations, self.waiters, self.events,
            self.logs, self.sessions, self.outbox.send_init, loop.after, ended,
        )  # fmt: skip
        self.limits = LimitEnforcer(self.lifecycle)
        servers = self._or_close(mcp_boxes, config.mcp, mcp)
        self.tools = Tools(
            boxes_of(servers | config.tools), config.tool_workers, self.lifecycle, self.gate,
            loop.after, self.journal.put,
        )  # fmt: skip
        self.lifecycle.ended.append(self.tools.ended)  # it starts and ends their workers

    def _make_entry(self, config: Config) -> None:
        """Build the parts by which calls come in, and by which what they change is kept."""
        loop = self.loop
        self.gateway = self._or_close(
            GatewayClient, config, loop, self.table, self.sessions, self.events,
            self.lifecycle.lost, self.audit.log.sync,
        )  # fmt: skip
        owners = (self.core, self.index, self.gateway)
        self.services = {owner.service.key: owner.service for owner in owners}
        self.greeter = Greeter(config, self.boot, self.lifecycle, self.gateway, loop.calls.is_here)
        self.trap = Trap(
            self.table, handlers(self), loop.send, self.greeter.hello, self.gate,
            self.approvals.ask, self.journal, self.outbox.send_synced, self.audit, self.sessions,
            self.lifecycle.settle,
        )  # fmt: skip
        self.gateway.on_call = self.trap.receive
        self.ledger = Ledger(
            self.journal, self.outbox, self.audit.log, self.table, self.contexts, self.generations,
            self.scheduler, self.lifecycle.pending_spawns,
        )  # fmt: skip

    def _connect(self) -> None:
        """Tell the loop whom it calls: it was made first, since all others send by it."""
        loop, callers = self.loop, self.loop.calls
        loop.on_turn, loop.is_waiting = self.ledger.end_turn, self.journal.is_waiting
        loop.on_call, loop.on_init = self.trap.receive, self._from_init
        loop.on_lost, loop.on_closed = self._lost, self._closed
        loop.say_remote = self.gateway.send
        callers.is_known = self.sessions.by_route.__contains__
        callers.tree_of, callers.on_refused = self.sessions.tree_of, self.greeter.cut_off

    def _recover(self, takeover: Takeover) -> None:
        """Recover what the last kernel of this system left."""
        Recovery(
            self.journal, self.table, self.trap, self.contexts, self.generations,
            self.scheduler, self.lifecycle, self.mailroom, self.grants,
        ).run(takeover.system)  # fmt: skip
        self.lifecycle.recover(takeover)
        self.owners.recover()
        for pid in [pid for pid in self.store.done.callers if not self.table.is_alive(pid)]:
            self.store.forget(pid)
        self.core.recover(takeover)
        self.index.recover(takeover)
        self.gateway.recover(takeover)

        self.audit.note("kernel.begin", detail=f"version {VERSION}, system {takeover.system}")
        walls = ", ".join(f"{name}: {how or 'none'}" for name, how in takeover.mechanisms.items())
        self.audit.note("kernel.walls", detail=walls)

    def _log(self) -> AuditLog:
        return AuditLog(
            self.config.path / "audit", Signer(self.config.path / "keys" / "audit"),
            self.loop.post, boot=bytes.fromhex(self.boot), keep=self.config.audit_bytes,
        )  # fmt: skip

    def _journal(self) -> Journal:
        return Journal(
            self.config.path / "journal", self.loop.post, codec=self.seal,
            before_sync=self.audit.log.sync,
        )  # fmt: skip

    def _opened(self, make: Callable[[], T], *, patient: bool) -> T:
        """Open a file; if `patient`, wait while the disk is full, as agents wait for this
        kernel.
        """
        while True:
            try:
                return make()
            except DiskFull as error:
                if not patient:
                    self.loop.close()
                    raise
                print(f"waiting: {error}", file=sys.stderr, flush=True)
                time.sleep(1)

    def _store(self, takeover: Takeover) -> Store | NoStore:
        """Open the store. Without it only calls to memory and storage fail, and say why."""
        folder = self.config.path / "store"
        try:
            if takeover.crashed:
                try_store(folder)
            return Store(
                folder, self.loop.post, limit=self.config.store_bytes, system=takeover.system,
                barrier=self.audit.log.sync, codec=self.seal or ChecksumCodec(),
            )  # fmt: skip
        except (StoreDamaged, DiskFull) as error:
            print(f"no store: {error}", file=sys.stderr, flush=True)
            return NoStore(error)

    def _owners(self, system: str) -> Owners:
        """Read the owners of memory. Without them only calls to memory fail."""
        try:
            return Owners(self.store, self.table, self.config, system)
        except StoreDamaged as error:
            print(f"no memory: {error}", file=sys.stderr, flush=True)
            return Owners(NoStore(error), self.table, self.config, system)

    def _or_close(self, make: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Make a part that a wrong setting or file may prevent; close the kernel then.

        Raises:
            BadInput: a setting or a file is wrong.
        """
        try:
            return make(*args, **options)
        except BadInput:
            self.store.close()
            self.loop.close()
            raise

    def run(self) -> None:
        """Serve until the system is stopped."""
        self.loop.every(SWEEP_S, self.limits.sweep)
        self.loop.every(SWEEP_S, self.logs.look)
        self.loop.every(SWEEP_S, self.grants.expire)
        self.loop.every(CHECKPOINT_S, self.audit.log.checkpoint)
        self.loop.every(WINDOW_S, self.audit.flush_counts)
        self.loop.run()
        self.journal.close()
        self.memory.batch.flush()
        self.interactions.flush()
        self.maintenance.close()
        self.lifecycle.leftovers.sweeper.close()
        self.blobs.close()
        self.loop.run_posted()  # what it was to commit
        self.store.close()
        self.loop.run_posted()  # replies that waited for the disk
        self.audit.flush_counts()
        self.audit.note("kernel.end")
        self.audit.log.close()
        self.loop.close()

    def _lost(self, route: bytes, why: str) -> None:
        session = self.sessions.by_route.get(route)
        if session is not None:
            self.lifecycle.lost(session, why)

    def _closed(self, route: bytes) -> None:
        self.sessions.greeted.discard(route)
        session = self.sessions.by_route.get(route)
        if session is not None:
            self.lifecycle.closed(session)

    def _from_init(self, frame: ToKernel) -> None:
        served = self.services.get(getattr(frame, "key", 1), self.lifecycle)
        match frame:
            case Started():
                served.started(frame)
            case StartFailed():
                served.start_failed(frame)
            case Gone():
                served.gone(frame)
            case Paused():
                self.lifecycle.paused(frame)
            case SandboxRefusal():
                self.lifecycle.refused(frame)
            case WindUp():
                self.wind_up()

    def _note(self, what: str, pid: int, detail: dict[str, Any]) -> None:
        process = self.table.rows.get(pid)
        principal = process.principal if process else ""
        said = in_a_line([f"{name}={quoted(str(value))}" for name, value in detail.items()])
        note = self.audit.note_denied if what == "process.refused" else self.audit.note
        note(what, pid, principal, said)

    def wind_up(self) -> Wait[None]:
        """End every agent, then answer those who asked for it, and end."""
        end = Wait[None]()

        def empty() -> None:
            self.lifecycle.on_empty = None
            end.done(None)
            for process in list(self.table.live()):
                self.sessions.end_calls(process, Cancelled("the system stops"))
            self.loop.running = False

        if self.lifecycle.on_empty is not None:
            return end
        self.lifecycle.on_empty = empty
        for process in self.lifecycle.agents_alive():
            self.lifecycle.terminate(process, "system stops")
        if not self.lifecycle.agents_alive():
            self.loop.after(0, empty)
        return end

    def check(self) -> list[str]:
        """Return every broken invariant in words."""
        live = list(self.table.live())
        return [
            *self.table.check(),
            *self.contexts.check(live),
            *self.generations.check(),
            *self.lifecycle.check(),
            *self.waiters.check(),
            *self.mailroom.check(self.table.rows.values()),
            *self.logs.check(),
            *self.storage.check(live),
            *self.trap.check(),
            *self.owners.check(),
            *self.grants.check(),
            *self.approvals.check(),
            *self.tools.check(),
        ]
