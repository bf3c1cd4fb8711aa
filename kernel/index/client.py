"""The kernel's side of the index: it starts the process, sends it the changes of storage, and
passes on searches.

The store numbers its changes, and the index reports up to which number it has them. So the kernel
remembers nothing of what it has sent: whichever side dies, the changes that follow the index's
position are sent next.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from aios.syscalls import sto
from aios.syscalls.base import Done
from aios.syscalls.errors import AiosError, IndexFailed, from_wire
from aios.syscalls.sto import Hit, Hits, IndexReport, IndexState

from ..config import Config
from ..entry.call import Call
from ..events import EventLog
from ..init.protocol import Gone, StartFailed, Takeover
from ..lib.coroutine import Wait, background
from ..lib.fair_queue import FairQueue
from ..lib.trees import root
from ..loop import Loop
from ..process import Process
from ..service import BACKOFF_S, Service
from .change_feed import ChangeFeed
from .protocol import (
    IndexUnusable,
    Position,
    Report,
    ResetIndex,
    Search,
    SearchResults,
    decode_report,
    encode,
)

INDEX_KEY = -1
MAX_DEATHS = 3  # in a row without a report, until the index is given up; the next search starts it
STORAGE_RETRY_S = 5.0  # until storage is read again after an error
DISK_FULL_HINT = "make room on its disk; a search that is not `fresh` goes on"
MAX_SEARCHES = 2  # that the index has at once
MAX_AHEAD_CHANGES = 512  # that are sent before the index reports that it has them


@dataclass
class PendingSearch:
    """A search whose caller waits."""

    process: Process
    search: Search
    needs: int  # the change that has to be indexed first
    queued: bool = False  # that change is indexed, and the search has its place in the queue
    hits: Wait[list[Hit]] = field(default_factory=Wait)


class IndexClient:
    """Keeps the index running, up to date, and busy with the searches of callers."""

    def __init__(self, config: Config, loop: Loop, changes: ChangeFeed, events: EventLog) -> None:
        self.config, self.changes, self.events = config, changes, events
        self.after = loop.after
        self.service = Service(INDEX_KEY, "index", config, loop, self)
        self.channel = self.service.channel(
            "index", self._connected, lambda data: self._on_report(decode_report(data))
        )
        self.state: IndexState = "asleep"
        self.error: AiosError | None = None
        self.epoch = time.monotonic_ns()  # above those of the kernels before
        self.drop = False
        self.sent = 0
        self.feeding = False
        self.position = Position(0, 0, 0, 0)
        self.newest_known = self._newest()  # the newest change that an index of this store can have
        self.rebuilt_because = ""
        self.pending: dict[int, PendingSearch] = {}
        self.queue = FairQueue(MAX_SEARCHES)
        self.deaths = 0

    # --- use --------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Send what was committed to storage; start the index if it sleeps."""
        if self.state == "asleep":
            self.start()
        self._feed()

    async def search(self, call: Call, args: sto.Search, scopes: list[tuple[str, str]]) -> Hits:
        """Search the objects that `scopes` cover: (owner, path), and all that is below that path.

        Raises:
            IndexFailed: the index died again and again, or cannot be read or written.
        """
        number = time.monotonic_ns()  # an index may still answer what another kernel asked
        search = Search(
            number, args.query, args.mode, args.count, scopes, args.since, args.until, args.tags
        )
        pending = PendingSearch(call.process, search, self._newest() if args.fresh else 0)
        self.pending[number] = pending
        try:
            if self.state in ("asleep", "failed"):
                self.deaths = 0
                self.start()
            self._queue_searches()
            self._fail_if_troubled()
            found = await pending.hits
        finally:
            self.pending.pop(number)
            self.queue.drop(number)
        return Hits(hits=found, behind=self._behind())

    def reindex(self, call: Call, args: sto.Reindex) -> Done:
        """Have the index made anew."""
        self._rebuild()
        return Done()

    def _rebuild(self) -> None:
        self.drop = True
        if self.state == "ready":
            self._connected()
        elif self.state != "starting":
            self.start()

    def report(self, call: Call, args: sto.Index) -> IndexReport:
        """Return the state of the index."""
        at = self.position
        return IndexReport(
            state=self.state, position=at.seq, behind=self._behind(), documents=at.documents,
            passages=at.passages, restarts=self.service.restarts,
            trouble=(
                str(self.error) if self.error
                else at.trouble or at.began_again or self.rebuilt_because
            ),
        )  # fmt: skip

    def _newest(self) -> int:
        try:
            return self.changes.newest()
        except AiosError:  # storage cannot be read, as each of its calls says
            return self.position.seq

    def _behind(self) -> int:
        return max(0, self._newest() - self.position.seq)

    # --- sending ----------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Send the next changes, some ahead of the index's position."""
        room = MAX_AHEAD_CHANGES - (self.sent - self.position.seq)
        if self.state != "ready" or self.feeding or room <= 0 or self.sent >= self._newest():
            return
        self.feeding = True
        background(self._send(room), self._on_storage_error)

    async def _send(self, room: int) -> None:
        changes = await self.changes.after(self.sent, room, self.epoch)
        self.feeding = False
        for change in changes:
            if change.epoch == self.epoch:  # else they are read again, from where it stands now
                self.channel.send(encode(change))
                self.sent = change.seq
                self.newest_known = max(self.newest_known, change.seq)
        self.after(0, self._feed)  # others get their turn

    def _on_storage_error(self, error: AiosError) -> None:
        """Try again later: the contents are elsewhere, and cannot be reached now."""
        self.feeding = False
        self.after(STORAGE_RETRY_S, self._feed)
        self.events.publish("index", "cannot read storage", error=error.to_wire())
        self._fail_fresh(error)

    def _fail_if_troubled(self) -> None:
        why = self.position.trouble
        if why:
            self._fail_fresh(IndexFailed(f"the index cannot be written: {why}", DISK_FULL_HINT))

    def _fail_fresh(self, error: AiosError) -> None:
        """Fail the searches that wait for a change to be indexed: it cannot be, for now."""
        for pending in list(self.pending.values()):
            if pending.needs > self.position.seq:
                pending.hits.fail(error)

    def _queue_searches(self) -> None:
        if self.state != "ready":
            return
        for number, pending in self.pending.items():
            if not pending.queued and pending.needs <= self.position.seq:
                self.queue.add(root(pending.process.principal), number)
                pending.queued = True
        self._send_searches()

    def _send_searches(self) -> None:
        while (number := self.queue.begin()) is not None:
            self.channel.send(encode(self.pending[number].search))

    # --- reports ----------------------------------------------------------------------------------

    def _connected(self) -> None:
        """Greet an index that has just connected; it may have served this kernel before."""
        self.epoch += 1
        self.state = "starting"
        self.queue = FairQueue(MAX_SEARCHES)
        for pending in self.pending.values():
            pending.queued = False
        self.channel.send(encode(ResetIndex(self.epoch, self.changes.id, self.drop)))

    def _on_report(self, report: Report) -> None:
        match report:
            case Position() if report.epoch == self.epoch:
                self._on_position(report)
            case Position():
                pass  # from before the last Reset
            case SearchResults():
                self._on_found(report)
            case IndexUnusable():
                self.error = from_wire(report.error)

    def _on_position(self, report: Position) -> None:
        if self.state == "starting":
            self.state, self.error, self.drop = "ready", None, False
            self.deaths, self.service.backoff_s = 0, BACKOFF_S
            self.sent = report.seq
            if report.began_again:
                self.events.publish("index", "begun again", why=report.began_again)
        if report.trouble and report.trouble != self.position.trouble:
            self.events.publish("index", "trouble", why=report.trouble)
        self.position = report
        if report.seq > self.newest_known:  # it is about a store that a backup has replaced
            self.rebuilt_because = "the store is an earlier one than what was indexed"
            self.events.publish("index", "begun again", why=self.rebuilt_because)
            self._rebuild()
            return
        self._fail_if_troubled()
        self._feed()
        self._queue_searches()

    def _on_found(self, found: SearchResults) -> None:
        self.queue.end(found.req)
        self._send_searches()
        pending = self.pending.get(found.req)
        if pending is None:  # it was cancelled, or another kernel asked it
            return
        if found.error is not None:
            pending.hits.fail(from_wire(found.error))
        else:
            pending.hits.done(found.hits)

    # --- its process ------------------------------------------------------------------------------

    def start(self) -> None:
        self.state = "starting"
        home = self.config.path
        self.service.launch({
            "home": str(home),
            "folder": "" if self.config.encrypt else str(home / "index"),
            "embedder": self.config.embedder,
            "embedder_prefixes": self.config.embedder_prefixes,
        })  # fmt: skip

    def recover(self, takeover: Takeover) -> None:
        """Take over the index of the kernel before, or start one if there is anything to index."""
        if running := self.service.left_running(takeover):
            self.service.adopt(running)
            self.state = "starting"
        elif self._newest():
            self.start()

    def not_started(self, frame: StartFailed) -> None:
        self._ended(frame.error["message"])

    def died(self, how: str, frame: Gone) -> None:
        self._ended(how)

    def _ended(self, how: str) -> None:
        self.state = "starting"
        self.deaths += 1
        self.events.publish("index", "died", how=how)
        if self.deaths < MAX_DEATHS:
            self.service.launch_later()
            return
        self.state = "failed"
        self.error = self.error or IndexFailed(f"the index died {self.deaths} times: {how}")
        for pending in list(self.pending.values()):
            pending.hits.fail(self.error)
