"""Where extents are: in RAM and on disk, each within its budget, and on their way between them.

All of this only saves time: what is not here is computed again. So an extent may be evicted at any
moment, a file may vanish or rot, and a full disk is no error. One thread keeps the books; files are
written, and read ahead, in two others.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Literal

from .disk import BadExtent, Disk, Name
from .state import Bytes

# What it costs to have a token's rows again, in milliseconds as measured on 2 cores: to decode it,
# to prefill it, to read it from disk. Only the ratios matter.
DECODE, PREFILL, READ = 8.0, 3.0, 0.05
PAUSE = 30.0  # seconds until a disk that failed is tried again
LAG = 64 << 20  # bytes that may be on their way to disk: what does not get there is not waited for
SLACK = 16  # a budget that is passed is trimmed by one part of so many more, to trim less often

Tier = Literal["ram", "disk"]


class Extent:
    """The KV rows of consecutive operations of a history, within one page of CHUNK tokens."""

    def __init__(self, parent: bytes, keys: list[bytes], first: int, tokens: int) -> None:
        self.parent = parent  # the key of the operation before
        self.keys = keys  # of its operations; see Extents.found
        self.first, self.tokens = first, tokens
        self.cost = DECODE  # of a token
        self.used = 0.0
        self.users: set[int] = set()  # contexts
        self.data: Bytes | None = None
        self.file = 0  # bytes on disk
        self.writing: Future[int] | None = None
        self.reading: Future[Bytes] | None = None

    @property
    def name(self) -> Name:
        return Name(self.keys[-1], self.first, self.tokens)

    @property
    def dirty(self) -> bool:
        """In RAM only, and not on its way to disk."""
        return self.data is not None and not self.file and self.writing is None


class Tiers:
    """Extents within a `budget` of bytes in RAM and, if there is one, within that of a `disk`.

    `row_bytes` are those of one token in all planes. `forgotten` hears of each extent that neither
    tier has any more.
    """

    def __init__(
        self, budget: int, row_bytes: int, disk: Disk | None, clock: Callable[[], float],
        forgotten: Callable[[Extent], None],
    ) -> None:  # fmt: skip
        self.budget, self.row_bytes, self.disk, self.clock = budget, row_bytes, disk, clock
        self.forgotten = forgotten
        self.all: set[Extent] = set()
        self.children: Counter[bytes] = Counter()  # extents by the key of their parent
        self.jobs: list[tuple[Future[Any], Callable[[], None]]] = []  # and what to do at their end
        self.ram = self.dirty = self.writing = self.on_disk = 0  # bytes now
        self.peak = self.written = self.read = 0  # bytes
        self.bad = self.lost = self.failures = 0  # files, extents, writes
        self.retry = float("-inf")
        self.writer, self.reader = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    # --- the books ------------------------------------------------------------------------------

    def add(self, extent: Extent) -> None:
        self.all.add(extent)
        self._count_child(extent.parent, 1)

    def adopt(self, extent: Extent, parent: bytes) -> None:
        """The parent of an extent has become known."""
        self._count_child(extent.parent, -1)
        extent.parent = parent
        self._count_child(parent, 1)

    def _count_child(self, parent: bytes, more: int) -> None:
        self.children[parent] += more
        if not self.children[parent]:
            del self.children[parent]  # or it would grow as long as the core lives

    def forget(self, extent: Extent) -> None:
        if extent.file:
            self._unlink(extent)
        self.set(extent, data=None, file=0, reading=None)
        self.all.discard(extent)
        self._count_child(extent.parent, -1)
        self.forgotten(extent)

    def set(self, extent: Extent, **changes: Any) -> None:
        """The only way to change what an extent occupies."""
        self._count(extent, -1)
        for name, value in changes.items():
            setattr(extent, name, value)
        self._count(extent, 1)
        self.peak = max(self.peak, self.ram)

    def _count(self, extent: Extent, sign: int) -> None:
        size = extent.data.nbytes if extent.data is not None else 0
        coming = self.size(extent) if extent.data is None and extent.reading is not None else 0
        self.ram += sign * (size + coming)
        self.dirty += sign * size * extent.dirty
        self.writing += sign * size * (extent.writing is not None)
        self.on_disk += sign * extent.file

    def size(self, extent: Extent) -> int:
        """Bytes of its rows."""
        return extent.tokens * self.row_bytes

    # --- budgets --------------------------------------------------------------------------------

    def trim(self, coming: int = 0, keep: Collection[Extent] = ()) -> None:
        """Keep RAM within its budget, with room for `coming` bytes. Up to half of it may be dirty:
        of more than that the coldest is written, so that there is something to drop at once when
        room is needed. What has to go before it is written is lost."""
        if self.disk is not None and self.dirty > self.budget // 2:
            over = self.dirty - self.budget // 2 + self.budget // SLACK
            for extent in self._coldest("ram"):
                if over > 0 and extent.dirty and extent.users:
                    over -= self.write(extent)
        if self.ram + coming > self.budget:
            goal = self.budget - self.budget // SLACK - coming
            self._evict("ram", lambda: self.ram > goal, keep)

    def trim_disk(self, coming: int = 0) -> None:
        budget = self.disk.budget if self.disk else 0
        if self.on_disk + coming > budget:
            goal = budget - budget // SLACK - coming
            self._evict("disk", lambda: self.on_disk > goal)

    def _evict(self, tier: Tier, over: Callable[[], bool], keep: Collection[Extent] = ()) -> None:
        """The coldest first. What the other tier has as well can come back; the rest is lost, from
        the ends of contexts on: behind a gap nothing is of use."""
        progress = True
        while progress and over():
            progress = False
            for extent in self._coldest(tier):
                if not over():
                    break
                if extent in keep:
                    continue
                if extent.file and extent.data is not None:
                    self.leave(extent, tier)
                elif not any(self.children[key] for key in extent.keys):
                    self.lost += bool(extent.users)
                    self.forget(extent)
                else:
                    continue
                progress = True
            if not progress and tier == "ram" and over():
                progress = self._forget_before_files(keep)

    def _forget_before_files(self, keep: Collection[Extent]) -> bool:
        """Forget an extent that RAM alone has, and behind which there are files alone: they are of
        no use without it. False: there is none."""
        behind: dict[bytes, list[Extent]] = {}
        for extent in self.all:
            behind.setdefault(extent.parent, []).append(extent)
        for extent in self._coldest("ram"):
            tree = [extent]
            for each in tree:
                tree += [child for key in each.keys for child in behind.get(key, ())]
            if extent not in keep and not any(e.data is not None or e.reading for e in tree[1:]):
                for each in reversed(tree):
                    self.lost += bool(each.users)
                    self.forget(each)
                return True
        return False

    def _coldest(self, tier: Tier) -> list[Extent]:
        """What nobody uses, then by what it costs to bring back, over the time it was not used."""
        now = self.clock()

        def warmth(extent: Extent) -> tuple[bool, float, int]:
            cost = READ if tier == "ram" and extent.file else extent.cost
            return bool(extent.users), cost / max(now - extent.used, 1e-3), -extent.first

        if tier == "ram":
            there = [e for e in self.all if e.data is not None and e.writing is None]
        else:
            there = [e for e in self.all if e.file and e.reading is None]
        return sorted(there, key=warmth)

    def leave(self, extent: Extent, tier: Tier) -> None:
        """The other tier keeps it."""
        if tier == "ram":
            self.set(extent, data=None)
        else:
            self._unlink(extent)
            self.set(extent, file=0)

    # --- to disk and back -----------------------------------------------------------------------

    def write(self, extent: Extent) -> int:
        """Start to write it, if the disk works, keeps up and has room; the bytes that are clean
        then."""
        if self.disk is None or extent.data is None or self.clock() < self.retry:
            return 0
        size = extent.data.nbytes
        if self.writing + size > LAG:
            return 0
        self.trim_disk(self.writing + size)
        if self.on_disk + self.writing + size > self.disk.budget:
            return 0
        job = self.writer.submit(self.disk.write, extent.name, extent.data)
        self.jobs.append((job, partial(self._wrote, extent)))
        self.set(extent, writing=job)
        return size

    def _wrote(self, extent: Extent) -> None:
        assert extent.writing is not None
        try:
            size = extent.writing.result()
        except OSError as error:
            self.set(extent, writing=None)
            self._failed(error)
            return
        self.written += size
        self.set(extent, writing=None, file=size)
        if not extent.users:  # its contexts are gone meanwhile
            self.leave(extent, "disk")

    def _unlink(self, extent: Extent) -> None:
        assert self.disk is not None
        job = self.writer.submit(self.disk.remove, extent.name)
        self.jobs.append((job, partial(self._removed, job)))

    def _removed(self, job: Future[None]) -> None:
        try:
            job.result()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """The disk is left alone for a while; what would have gone there is lost in its turn."""
        if self.clock() >= self.retry:
            _log(f"no snapshots go to disk for {PAUSE:g} s: {error}")
        self.failures += 1
        self.retry = self.clock() + PAUSE

    def read_ahead(self, extent: Extent) -> None:
        """Start to read it; from now on it takes up RAM."""
        assert self.disk is not None
        self.trim(self.size(extent))
        job = self.reader.submit(self.disk.read, extent.name, self.size(extent))
        self.jobs.append((job, partial(self._arrived, extent)))
        self.set(extent, reading=job)

    def _arrived(self, extent: Extent) -> None:
        if extent.reading is not None and extent in self.all:
            self.fetch(extent)

    def fetch(self, extent: Extent) -> None:
        """Have it in RAM, or forget it."""
        assert self.disk is not None
        try:
            if extent.reading is not None:
                rows = extent.reading.result()
            else:
                rows = self.disk.read(extent.name, self.size(extent))
        except (OSError, BadExtent) as error:
            _log(f"a snapshot is of no use, and is computed again: {error}")
            self.bad += 1
            self.forget(extent)
            return
        self.read += extent.file
        self.set(extent, data=rows, reading=None)

    def poll(self) -> None:
        """Take note of what was read and written."""
        done = [job for job in self.jobs if job[0].done()]
        self.jobs = [job for job in self.jobs if job not in done]
        for _, finish in done:
            finish()
        if done:
            self.trim()

    def flush(self) -> None:
        """Wait until nothing is being read or written."""
        while self.jobs:
            wait([future for future, _ in self.jobs])
            self.poll()

    # --- invariants -----------------------------------------------------------------------------

    def check(self) -> list[str]:
        """What is wrong with the books, once nothing is on its way; nothing, if all is well."""
        self.flush()
        problems = []
        sums = Counter(ram=0, dirty=0, writing=0, on_disk=0)
        for extent in self.all:
            held = 0 if extent.data is None else extent.data.nbytes
            sums.update(ram=held, dirty=held * extent.dirty, on_disk=extent.file)
            if held not in (0, self.size(extent)) or not (held or extent.file):
                problems.append(f"{extent.name} has {held} bytes in RAM, {extent.file} on disk")
        for name, size in sums.items():
            if getattr(self, name) != size:
                problems.append(f"{name} is {getattr(self, name)}, not {size}")
        if self.ram > self.budget:
            problems.append(f"{self.ram} bytes are in RAM, {self.budget} may be")
        if dict(Counter(extent.parent for extent in self.all)) != dict(self.children):
            problems.append("children are miscounted")
        if self.disk is not None:
            mine = {str(extent.name) for extent in self.all if extent.file}
            there = {path.name for path in self.disk.folder.iterdir()}
            problems += [f"{name} is on disk or in the books, not both" for name in mine ^ there]
        return problems


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
