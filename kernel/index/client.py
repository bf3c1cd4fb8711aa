"""The kernel's side of the index: started when there is something to index or to find, fed with
what changes in storage, asked for what callers look for.

The store numbers its changes; the index says up to which it has them. So nothing else is kept of
what was sent: whatever dies, the next one is told what follows the index's position.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from aios.syscalls import sto
from aios.syscalls.errors import AiosError, IndexFailed, from_wire
from aios.syscalls.sto import Hit, Hits, IndexReport, IndexState

from ..config import Config
from ..entry.trap import Call
from ..events import EventLog
from ..init.protocol import Census, Gone, Heard, Started, StartFailed, StartService
from ..lib.fair_queue import FairQueue
from ..lib.task import Wait, background
from ..lib.trees import root
from ..loop import Loop
from ..process import Process
from .change_feed import Changes
from .protocol import (
    Failed,
    Found,
    Position,
    Report,
    Reset,
    Search,
    decode_report,
    encode,
)

INDEX_KEY = -1
BACKOFF, LONGEST_BACKOFF = 0.05, 5.0  # seconds
DEATHS = 3  # in a row without a word, after which the index is given up until the next search
RETRY = 5.0  # seconds until storage is read again, where it could not be
ROOM = "make room on its disk; a search that is not `fresh` goes on"
SEARCHES = 2  # that are with the index at once
AHEAD = 512  # changes that are sent before the index says that it has them


@dataclass
class Asked:
    process: Process
    search: Search
    needs: int  # the change that has to be indexed first
    queued: bool = False  # it has been, and its turn comes
    end: Wait[list[Hit]] = field(default_factory=Wait)


class IndexLink:
    def __init__(
        self, config: Config, loop: Loop, changes: Changes, events: EventLog,
        tell_read: Callable[[Process, list[tuple[str, str, int]]], None],
    ) -> None:  # fmt: skip
        """`tell_read(process, found)` notes which versions a process hears of."""
        self.config, self.changes, self.events = config, changes, events
        self.tell_read = tell_read
        self.line, self.to_init, self.after = loop.index, loop.send_init, loop.after
        self.line.on_here = self._here
        self.line.on_data = lambda data: self._report(decode_report(data))
        self.state: IndexState = "asleep"
        self.error: AiosError | None = None
        self.epoch = time.monotonic_ns()  # above those of the kernels before
        self.drop = False
        self.sent = 0
        self.feeding = False
        self.position = Position(0, 0, 0, 0)
        self.known = self._newest()  # the newest change that an index of this store can have
        self.began = ""  # why all of it had to be made again
        self.asked: dict[int, Asked] = {}
        self.queue = FairQueue(SEARCHES)
        self.restarts = self.deaths = 0
        self.backoff = BACKOFF

    # --- use --------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something was committed to storage."""
        if self.state == "asleep":
            self._start()
        self._feed()

    async def search(self, call: Call, args: sto.Search, scopes: list[tuple[str, str]]) -> Hits:
        """Look at what `scopes` cover alone: (owner, path), and all that is below that path.

        Raises:
            IndexFailed: the index died over and over; each search has it tried again.
        """
        number = time.monotonic_ns()  # an index may still answer what another kernel asked
        search = Search(
            number, args.query, args.mode, args.count, scopes, args.since, args.until, args.tags
        )
        asked = Asked(call.process, search, self._newest() if args.fresh else 0)
        self.asked[number] = asked
        try:
            if self.state in ("asleep", "failed"):
                self.deaths = 0
                self._start()
            self._ask()
            self._look_at_trouble()
            found = await asked.end
        finally:
            self.asked.pop(number)
            self.queue.drop(number)
        self.tell_read(call.process, [(hit.owner, hit.path, hit.version) for hit in found])
        return Hits(hits=found, behind=self._behind())

    def rebuild(self) -> None:
        self.drop = True
        if self.state == "ready":
            self._here()
        elif self.state != "starting":
            self._start()

    def report(self) -> IndexReport:
        at = self.position
        return IndexReport(
            state=self.state, position=at.seq, behind=self._behind(), documents=at.documents,
            passages=at.passages, restarts=self.restarts,
            trouble=str(self.error) if self.error else at.trouble or at.began_again or self.began,
        )  # fmt: skip

    def _newest(self) -> int:
        try:
            return self.changes.newest()
        except AiosError:  # storage cannot be read, as each of its calls says
            return self.position.seq

    def _behind(self) -> int:
        return max(0, self._newest() - self.position.seq)

    # --- what is sent -----------------------------------------------------------------------------

    def _feed(self) -> None:
        """Send the next changes, some ahead of what the index has."""
        room = AHEAD - (self.sent - self.position.seq)
        if self.state != "ready" or self.feeding or room <= 0 or self.sent >= self._newest():
            return
        self.feeding = True
        background(self._send(room), self._cannot_read)

    async def _send(self, room: int) -> None:
        changes = await self.changes.after(self.sent, room, self.epoch)
        self.feeding = False
        for change in changes:
            if change.epoch == self.epoch:  # else they are read again, from where it stands now
                self.line.send(encode(change))
                self.sent = change.seq
                self.known = max(self.known, change.seq)
        self.after(0, self._feed)  # others get their turn

    def _cannot_read(self, error: AiosError) -> None:
        """Of storage, whose contents are elsewhere and cannot be reached: tried again."""
        self.feeding = False
        self.after(RETRY, self._feed)
        self.events.publish("index", "cannot read storage", error=error.to_wire())
        self._fail_fresh(error)

    def _look_at_trouble(self) -> None:
        why = self.position.trouble
        if why:
            self._fail_fresh(IndexFailed(f"the index cannot be written: {why}", ROOM))

    def _fail_fresh(self, error: AiosError) -> None:
        """What these wait for cannot be indexed now: they are told, rather than left to wait."""
        for asked in list(self.asked.values()):
            if asked.needs > self.position.seq:
                asked.end.fail(error)

    def _ask(self) -> None:
        if self.state != "ready":
            return
        for number, asked in self.asked.items():
            if not asked.queued and asked.needs <= self.position.seq:
                self.queue.add(root(asked.process.principal), number)
                asked.queued = True
        self._ask_next()

    def _ask_next(self) -> None:
        while (number := self.queue.begin()) is not None:
            self.line.send(encode(self.asked[number].search))

    # --- what is heard ----------------------------------------------------------------------------

    def _here(self) -> None:
        """It has just connected, to this kernel or to this one as well: it starts afresh."""
        self.epoch += 1
        self.state = "starting"
        self.queue = FairQueue(SEARCHES)
        for asked in self.asked.values():
            asked.queued = False
        self.line.send(encode(Reset(self.epoch, self.changes.id, self.drop)))

    def _report(self, report: Report) -> None:
        match report:
            case Position() if report.epoch == self.epoch:
                self._stands_at(report)
            case Position():
                pass  # of before the last Reset
            case Found():
                self._found(report)
            case Failed():
                self.error = from_wire(report.error)

    def _stands_at(self, report: Position) -> None:
        if self.state == "starting":
            self.state, self.error, self.drop = "ready", None, False
            self.deaths, self.backoff = 0, BACKOFF
            self.sent = report.seq
            if report.began_again:
                self.events.publish("index", "begun again", why=report.began_again)
        if report.trouble and report.trouble != self.position.trouble:
            self.events.publish("index", "trouble", why=report.trouble)
        self.position = report
        if report.seq > self.known:  # of a store that a backup has replaced
            self.began = "the store is an earlier one than what was indexed"
            self.events.publish("index", "begun again", why=self.began)
            self.rebuild()
            return
        self._look_at_trouble()
        self._feed()
        self._ask()

    def _found(self, found: Found) -> None:
        self.queue.end(found.req)
        self._ask_next()
        asked = self.asked.get(found.req)
        if asked is None:  # it was cancelled, or asked by another kernel
            return
        if found.error is not None:
            asked.end.fail(from_wire(found.error))
        else:
            asked.end.done(found.hits)

    # --- its process ------------------------------------------------------------------------------

    def _start(self) -> None:
        self.state = "starting"
        home = self.config.path
        settings = {
            "home": str(home),
            "folder": "" if self.config.encrypt else str(home / "index"),
            "embedder": self.config.embedder,
            "embedder_prefixes": self.config.embedder_prefixes,
        }
        argv = [sys.executable, "-m", "aios.kernel.index", msgspec.json.encode(settings).decode()]
        self.to_init(StartService(INDEX_KEY, argv, str(home / "log" / "index.log")))

    def recover(self, census: Census) -> None:
        """Take over the index of the kernel before; else start one when there is need."""
        running = [os_pid for os_pid, key in census.children.items() if key == INDEX_KEY]
        for frame in census.gone:
            if frame.key == INDEX_KEY:
                self.to_init(Heard(frame.os_pid))
        if running:
            self.line.os_pid = running[0]
            self.state = "starting"
        elif self._newest():
            self._start()

    def started(self, frame: Started) -> None:
        self.line.os_pid = frame.os_pid

    def start_failed(self, frame: StartFailed) -> None:
        """init could not fork it: too many processes, or no memory."""
        self._died(frame.error["message"])

    def gone(self, frame: Gone) -> None:
        self.to_init(Heard(frame.os_pid))
        self.line.gone()
        self.restarts += 1
        self._died(f"signal {frame.signal}" if frame.signal else f"exit code {frame.code}")

    def _died(self, how: str) -> None:
        self.state = "starting"
        self.deaths += 1
        self.events.publish("index", "died", how=how)
        if self.deaths < DEATHS:
            self.after(self.backoff, self._start)
            self.backoff = min(self.backoff * 2, LONGEST_BACKOFF)
            return
        self.state = "failed"
        self.error = self.error or IndexFailed(f"the index died {self.deaths} times: {how}")
        for asked in list(self.asked.values()):
            asked.end.fail(self.error)
