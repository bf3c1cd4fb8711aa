"""Builds the kernel, one line a part, ties the parts to the loop, and has the ledger take up what
another kernel left."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable

from aios.syscalls.errors import Cancelled, DiskFull, StoreDamaged

from .config import Config
from .context import ContextManager
from .core.protocol import Drop
from .core_link import CORE_KEY, CoreLink
from .generation import Generations
from .handlers import handlers
from .init_protocol import Gone, Paused, Started, StartFailed, ToKernel, WindUp
from .interactions import InteractionLog
from .journal import Journal
from .ledger import Ledger
from .lifecycle import Lifecycle
from .logs import Logs
from .loop import Loop
from .memory import Memory
from .message import Mailroom
from .owners import Owners
from .process import ProcessTable
from .prompt import Prompts
from .scheduler import Scheduler
from .stats import EventLog, Statistics
from .store import NoStore, Store
from .trap import Trap
from .waiting import Waiters

SWEEP = 0.1  # seconds between two looks at limits, figures and logs


class Kernel:
    """All parts of the kernel.

    Raises:
        HomeBusy: another kernel listens already.
        DiskFull: there is no room for a journal.
    """

    def __init__(self, config: Config, init_fd: int) -> None:
        self.config = config
        self.boot = secrets.token_hex(8)
        self.os_pid = os.getpid()
        self.began = time.monotonic()
        self.loop = loop = Loop(config.path, init_fd)
        census = loop.first_word()
        self.ledger = ledger = Ledger(self._journal(patient=bool(census.children)), loop.send_now)
        self.store = self._store(census.system)
        self.stats = Statistics()
        self.events = EventLog()
        self.table = ProcessTable(config.agents, config.clients, config.dead)
        self.owners = Owners(self.store, self.table, config, census.system)
        self.memory = Memory(self.store, self.owners)
        self.interactions = InteractionLog(self.store, self.owners, config.log_bytes)
        self.contexts = ContextManager(lambda ctx: loop.send_core(Drop(ctx)))
        self.scheduler = Scheduler(config.policy, config.quantum)
        self.prompts = Prompts(self.contexts, loop.ask_core)
        self.generations = Generations(
            self.scheduler, self.contexts, self.prompts, self.stats, self.events, loop.send_core,
            ledger.note_work,
        )  # fmt: skip
        self.core = CoreLink(config, loop, self.generations, self.events, loop.send_init)
        self.prompts.ask = self.core.ask
        self.logs = Logs(config.path / "log", self.table, loop.after)
        self.mailroom = Mailroom(loop.after, self.table.is_alive, ledger.note_mail)
        self.generations.on_end = self.interactions.generated
        self.mailroom.on_sent = self.interactions.sent
        self.mailroom.on_received = self.interactions.received
        self.waiters = Waiters(self.table, loop.after)
        self.lifecycle = Lifecycle(
            config, self.boot, self.table, self.contexts, self.generations, self.mailroom,
            self.memory, self.waiters, self.events, self.logs, loop.send_init, loop.after,
        )  # fmt: skip
        self.trap = Trap(
            self.table, handlers(self), loop.send, self.lifecycle.hello, ledger,
            self.lifecycle.settle,
        )  # fmt: skip
        self.lifecycle.trap = self.trap
        ledger.table, ledger.contexts, ledger.generations = (
            self.table, self.contexts, self.generations,
        )  # fmt: skip
        ledger.lifecycle, ledger.mailroom = self.lifecycle, self.mailroom
        loop.on_turn = ledger.end_turn
        loop.on_core_here = self.core.here
        loop.on_call = self.trap.receive
        loop.on_lost = self._lost
        loop.on_init = self._from_init
        loop.on_report = self.core.report
        loop.on_encoded = self.prompts.answered
        loop.on_text_ready = self.core.ask_again
        ledger.recover(census.system)
        self.lifecycle.recover(census)
        self.owners.recover()
        self.core.recover(census)

    def _journal(self, *, patient: bool) -> Journal:
        """Where agents wait for this kernel, a full disk is waited for as well."""
        while True:
            try:
                return Journal(self.config.path / "journal", self.loop.post)
            except DiskFull as error:
                if not patient:
                    self.loop.close()
                    raise
                print(f"waiting: {error}", file=sys.stderr, flush=True)
                time.sleep(1)

    def _store(self, system: str) -> Store | NoStore:
        """Without it all goes on but memory and storage, whose calls say why."""
        try:
            return Store(
                self.config.path / "store", self.loop.post, limit=self.config.store_bytes,
                system=system,
            )  # fmt: skip
        except (StoreDamaged, DiskFull) as error:
            print(f"no store: {error}", file=sys.stderr, flush=True)
            return NoStore(error)

    def run(self) -> None:
        """Serve until the system is stopped."""
        self.loop.every(SWEEP, self.lifecycle.sweep)
        self.loop.run()
        self.ledger.journal.close()
        self.memory.puts.flush()
        self.interactions.flush()
        self.store.close()
        self.loop.run_posted()  # replies that waited for the disk
        self.loop.close()

    def _lost(self, route: bytes, why: str) -> None:
        session = self.trap.sessions.get(route)
        if session is not None:
            self.lifecycle.lost(session, why)

    def _from_init(self, frame: ToKernel) -> None:
        match frame:
            case Started(key) if key == CORE_KEY:
                self.core.started(frame)
            case Started():
                self.lifecycle.started(frame)
            case StartFailed(key) if key == CORE_KEY:
                self.core.start_failed(frame)
            case StartFailed():
                self.lifecycle.start_failed(frame)
            case Gone(key) if key == CORE_KEY:
                self.core.gone(frame)
            case Gone():
                self.lifecycle.gone(frame)
            case Paused():
                self.lifecycle.paused(frame)
            case WindUp():
                self.wind_up(lambda: None)

    def wind_up(self, then: Callable[[], None]) -> None:
        """End every agent; then answer whoever asked for it, and end."""

        def empty() -> None:
            self.lifecycle.on_empty = None
            then()
            for process in list(self.table.live()):
                self.trap.end_calls(process, Cancelled("the system stops"))
            self.loop.running = False

        if self.lifecycle.on_empty is not None:
            return
        self.lifecycle.on_empty = empty
        for process in self.lifecycle.agents_alive():
            self.lifecycle.terminate(process, "system stops")
        if not self.lifecycle.agents_alive():
            empty()

    def check(self) -> list[str]:
        """Every invariant that is broken now, in words; none when all is well."""
        live = list(self.table.live())
        return [
            *self.table.check(),
            *self.contexts.check(live),
            *self.generations.check(),
            *self.lifecycle.check(),
            *self.waiters.check(),
            *self.logs.check(),
            *self.trap.check(),
            *self.owners.check(),
        ]
