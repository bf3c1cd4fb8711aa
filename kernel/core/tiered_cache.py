"""The tiered cache of KV blocks: in RAM and on disk, each within its budget.

The cache only saves time: a block that it lacks is computed again. So a block may be evicted at any
moment, a file may vanish or rot, and a full disk is no error. One thread does the accounting; files
are written, and read ahead, in two others.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Literal

from .disk import BadBlock, Disk
from .kv_block import READ_MS, KVBlock

DISK_RETRY_S = 30.0  # until a disk that failed is tried again
MAX_WRITING_BYTES = 64 << 20  # on their way to disk; a block beyond that is not written for now
TRIM_SLACK = 16  # trimming frees one part in so many more than it must, to be needed less often

Tier = Literal["ram", "disk"]


class TieredCache:
    """KV blocks within a `budget` of bytes in RAM and, if there is one, the budget of a `disk`.

    `row_bytes` is the size of a token's keys and values. `on_evicted` is called for each block
    that has left both tiers.
    """

    def __init__(
        self, budget: int, row_bytes: int, disk: Disk | None, clock: Callable[[], float],
        on_evicted: Callable[[KVBlock], None],
    ) -> None:  # fmt: skip
        self.budget, self.row_bytes, self.disk, self.clock = budget, row_bytes, disk, clock
        self.on_evicted = on_evicted
        self.blocks: set[KVBlock] = set()
        self.children: Counter[bytes] = Counter()  # blocks by the key of their parent
        self.jobs: list[tuple[Future[Any], Callable[[], None]]] = []  # and what to do at their end
        self.ram = self.dirty = self.writing = self.on_disk = 0  # bytes now
        self.peak = self.written = self.read = 0  # bytes
        self.bad = self.lost = self.failures = 0  # files, blocks, writes
        self.retry_at = float("-inf")
        self.writer, self.reader = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    # --- accounting ------------------------------------------------------------------------------

    def add(self, block: KVBlock) -> None:
        self.blocks.add(block)
        self._count_child(block.parent, 1)

    def set_parent(self, block: KVBlock, parent: bytes) -> None:
        """Give a block found on disk the parent that a history has shown."""
        self._count_child(block.parent, -1)
        block.parent = parent
        self._count_child(parent, 1)

    def _count_child(self, parent: bytes, more: int) -> None:
        self.children[parent] += more
        if not self.children[parent]:
            del self.children[parent]  # or it would grow as long as the core lives

    def forget(self, block: KVBlock) -> None:
        if block.file:
            self._unlink(block)
        self.set(block, data=None, file=0, reading=None)
        self.blocks.discard(block)
        self._count_child(block.parent, -1)
        self.on_evicted(block)

    def set(self, block: KVBlock, **changes: Any) -> None:
        """Change what a block occupies; nothing else may, or the sums would be wrong."""
        self._count(block, -1)
        for name, value in changes.items():
            setattr(block, name, value)
        self._count(block, 1)
        self.peak = max(self.peak, self.ram)

    def _count(self, block: KVBlock, sign: int) -> None:
        size = block.data.nbytes if block.data is not None else 0
        coming = self.size(block) if block.data is None and block.reading is not None else 0
        self.ram += sign * (size + coming)
        self.dirty += sign * size * block.dirty
        if block.writing is not None and self.disk is not None:
            self.writing += sign * self.disk.most(self.size(block))
        self.on_disk += sign * block.file

    def size(self, block: KVBlock) -> int:
        """Return the bytes of a block's rows."""
        return block.tokens * self.row_bytes

    # --- budgets --------------------------------------------------------------------------------

    def trim(self, coming: int = 0, keep: Collection[KVBlock] = ()) -> None:
        """Keep RAM within its budget, with room for `coming` bytes. Up to half of it may be dirty;
        beyond that the coldest blocks are written, so that there are always blocks to drop at once
        when room is needed. A block that has to go before it is written is lost."""
        if self.disk is not None and self.dirty > self.budget // 2:
            over = self.dirty - self.budget // 2 + self.budget // TRIM_SLACK
            for block in self._coldest("ram"):
                if over > 0 and block.dirty and block.users:
                    over -= self.write(block)
        if self.ram + coming > self.budget:
            goal = self.budget - self.budget // TRIM_SLACK - coming
            self._evict("ram", lambda: self.ram > goal, keep)

    def trim_disk(self, coming: int = 0) -> None:
        budget = self.disk.budget if self.disk else 0
        if self.on_disk + coming > budget:
            goal = budget - budget // TRIM_SLACK - coming
            self._evict("disk", lambda: self.on_disk > goal)

    def _evict(self, tier: Tier, over: Callable[[], bool], keep: Collection[KVBlock] = ()) -> None:
        """Evict the coldest blocks first. A block in this tier alone is lost; only leaves of the
        tree of prefixes may be, since blocks behind a gap are of no use."""
        progress = True
        while progress and over():
            progress = False
            for block in self._coldest(tier):
                if not over():
                    break
                if block in keep:
                    continue
                if block.file and block.data is not None:
                    self.leave(block, tier)
                elif not any(self.children[key] for key in block.keys):
                    self.lost += bool(block.users)
                    self.forget(block)
                else:
                    continue
                progress = True
            if not progress and tier == "ram" and over():
                progress = self._forget_parent_of_files(keep)

    def _forget_parent_of_files(self, keep: Collection[KVBlock]) -> bool:
        """Forget a block that is in RAM alone and has only files behind it, along with these files,
        which are of no use without it. Return False if there is none."""
        behind: dict[bytes, list[KVBlock]] = {}
        for block in self.blocks:
            behind.setdefault(block.parent, []).append(block)
        for block in self._coldest("ram"):
            tree = [block]
            for each in tree:
                tree += [child for key in each.keys for child in behind.get(key, ())]
            if block not in keep and not any(e.data is not None or e.reading for e in tree[1:]):
                for each in reversed(tree):
                    self.lost += bool(each.users)
                    self.forget(each)
                return True
        return False

    def _coldest(self, tier: Tier) -> list[KVBlock]:
        """Return a tier's blocks: first those without users, then by the cost of having them again
        over the time since their last use."""
        now = self.clock()

        def warmth(block: KVBlock) -> tuple[bool, float, int]:
            cost_ms = READ_MS if tier == "ram" and block.file else block.cost_ms
            return bool(block.users), cost_ms / max(now - block.last_used, 1e-3), -block.first

        if tier == "ram":
            there = [e for e in self.blocks if e.data is not None and e.writing is None]
        else:
            there = [e for e in self.blocks if e.file and e.reading is None]
        return sorted(there, key=warmth)

    def leave(self, block: KVBlock, tier: Tier) -> None:
        """Drop a block from one tier; it is in the other as well."""
        if tier == "ram":
            self.set(block, data=None)
        else:
            self._unlink(block)
            self.set(block, file=0)

    # --- to disk and back -----------------------------------------------------------------------

    def write(self, block: KVBlock) -> int:
        """Start to write a block, if the disk works, keeps up and has room.

        Returns:
            The bytes that are no longer dirty.
        """
        if self.disk is None or block.data is None or self.clock() < self.retry_at:
            return 0
        size = block.data.nbytes
        coming = self.writing + self.disk.most(size)
        if coming > MAX_WRITING_BYTES:
            return 0
        self.trim_disk(coming)
        if self.on_disk + coming > self.disk.budget:
            return 0
        job = self.writer.submit(self.disk.write, block.name, block.data)
        self.jobs.append((job, partial(self._on_written, block)))
        self.set(block, writing=job)
        return size

    def _on_written(self, block: KVBlock) -> None:
        assert block.writing is not None
        try:
            size = block.writing.result()
        except OSError as error:
            self.set(block, writing=None)
            self._on_failed(error)
            return
        self.written += size
        self.set(block, writing=None, file=size)
        if not block.users:  # its contexts are gone meanwhile
            self.leave(block, "disk")

    def _unlink(self, block: KVBlock) -> None:
        assert self.disk is not None
        job = self.writer.submit(self.disk.remove, block.name)
        self.jobs.append((job, partial(self._on_removed, job)))

    def _on_removed(self, job: Future[None]) -> None:
        try:
            job.result()
        except OSError as error:
            self._on_failed(error)

    def _on_failed(self, error: OSError) -> None:
        """Leave the disk alone for a while; blocks that would have gone there may be lost."""
        if self.clock() >= self.retry_at:
            _log(f"no snapshots go to disk for {DISK_RETRY_S:g} s: {error}")
        self.failures += 1
        self.retry_at = self.clock() + DISK_RETRY_S

    def read_ahead(self, block: KVBlock) -> None:
        """Start to read a block; it counts as in RAM from now on."""
        assert self.disk is not None
        self.trim(self.size(block))
        job = self.reader.submit(self.disk.read, block.name, self.size(block))
        self.jobs.append((job, partial(self._on_read, block)))
        self.set(block, reading=job)

    def _on_read(self, block: KVBlock) -> None:
        if block.reading is not None and block in self.blocks:
            self.fetch(block)

    def fetch(self, block: KVBlock) -> None:
        """Read a block into RAM, or forget it if its file is damaged."""
        assert self.disk is not None
        try:
            if block.reading is not None:
                rows = block.reading.result()
            else:
                rows = self.disk.read(block.name, self.size(block))
        except (OSError, BadBlock) as error:
            _log(f"a snapshot is of no use, and is computed again: {error}")
            self.bad += 1
            self.forget(block)
            return
        self.read += block.file
        self.set(block, data=rows, reading=None)

    def poll(self) -> None:
        """Complete the reads and writes that are done."""
        done = [job for job in self.jobs if job[0].done()]
        self.jobs = [job for job in self.jobs if job not in done]
        for _, finish in done:
            finish()
        if done:
            self.trim()

    def flush(self) -> None:
        """Wait for all reads and writes."""
        while self.jobs:
            wait([future for future, _ in self.jobs])
            self.poll()

    # --- invariants -----------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Return the invariants that do not hold; an empty list if all is well. Waits for all reads
        and writes."""
        self.flush()
        problems = []
        sums = Counter(ram=0, dirty=0, writing=0, on_disk=0)
        for block in self.blocks:
            held = 0 if block.data is None else block.data.nbytes
            sums.update(ram=held, dirty=held * block.dirty, on_disk=block.file)
            if held not in (0, self.size(block)) or not (held or block.file):
                problems.append(f"{block.name} has {held} bytes in RAM, {block.file} on disk")
        for name, size in sums.items():
            if getattr(self, name) != size:
                problems.append(f"{name} is {getattr(self, name)}, not {size}")
        if self.ram > self.budget:
            problems.append(f"{self.ram} bytes are in RAM, {self.budget} may be")
        if dict(Counter(block.parent for block in self.blocks)) != dict(self.children):
            problems.append("children are miscounted")
        if self.disk is not None:
            mine = {str(block.name) for block in self.blocks if block.file}
            there = {path.name for path in self.disk.folder.iterdir()}
            problems += [f"{name} is on disk or in the cache, not both" for name in mine ^ there]
        return problems


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
