"""The snapshots of contexts (paper, section 3.4), cut into extents that contexts share.

An extent is found by the keys of its operations, and a key names all that was entered before. So
contexts that begin alike share extents, a context that grew adds but the rows that are new, and
one that was rolled back or forked finds what it begins with. There is no other prefix cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from .disk import Disk
from .engine import CHUNK
from .history import Op, length
from .protocol import Decoded
from .state import Bytes, Part
from .tiers import DECODE, PREFILL, Extent, Tiers

Cut = Callable[[list[tuple[int, int]]], list[Bytes]]  # rows (first, tokens) out of a slot
Paste = Callable[[list[Part]], None]  # into a slot


class Extents:
    """Extents of all contexts, by key; `tiers` has them. `row_bytes` is 0 for a model whose rows
    cannot be cut: then nothing is kept."""

    def __init__(
        self, budget: int, row_bytes: int, disk: Disk | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.tiers = Tiers(budget, row_bytes, disk, clock, self._forgotten)
        self.by_key: dict[bytes, Extent] = {}  # the key of an operation to an extent with its rows
        self.found: dict[bytes, Extent] = {}  # on disk at the start: only their last key is known
        self.used_by: dict[int, set[Extent]] = {}
        for name, size in disk.found if disk else []:
            extent = self.found[name.key] = Extent(b"", [name.key], name.first, name.tokens)
            self.tiers.add(extent)
            self.tiers.set(extent, file=max(size, 1))  # an empty file is one as well
        self.tiers.trim_disk()

    # --- contexts -------------------------------------------------------------------------------

    def reach(self, ops: list[Op], keys: list[bytes]) -> int:
        """Of how many operations, from the first on, there are rows."""
        if self.found:
            self._adopt(ops, keys)
        gaps = (at for at, key in enumerate(keys) if key not in self.by_key)
        return next(gaps, len(keys))

    def save(self, ctx: int, ops: list[Op], keys: list[bytes], cut: Cut) -> None:
        """Keep the rows of `ops`; those are cut that are not in RAM."""
        if not self.tiers.row_bytes:
            return
        self.reach(ops, keys)
        new = [_extent(ops, keys, *run) for run in self._runs(ctx, ops, keys)]
        held, ends = self._holders(keys), set(keys)
        cold = [e for e in held if e.data is None and e.reading is None and e.keys[-1] in ends]
        self.tiers.trim(sum(map(self.tiers.size, [*new, *cold])), keep=held)
        for extent in new:
            self.tiers.add(extent)
            self.by_key.update(dict.fromkeys(extent.keys, extent))
        if fresh := [*new, *cold]:
            for extent, rows in zip(fresh, cut([(e.first, e.tokens) for e in fresh]), strict=True):
                self.tiers.set(extent, data=rows)
        self._touch(ctx, [*held, *new])
        self.tiers.trim()

    def load(self, ctx: int, ops: list[Op], keys: list[bytes], paste: Paste, *, beyond: int) -> int:
        """How many operations `paste` was given the rows of, from the first on, out of RAM and off
        the disk; `beyond` if not more than that are held, and then it was not called."""
        holders = self._holders(keys[: self.reach(ops, keys)])
        self._touch(ctx, holders)
        absent = [extent for extent in holders if extent.data is None]
        self.tiers.trim(sum(map(self.tiers.size, absent)), keep=holders)
        for extent in absent:
            self.tiers.fetch(extent)
        count = self.reach(ops, keys)
        if count > beyond:
            paste(self._parts(ops[:count], keys))
            for extent in holders:
                if extent.file and extent.data is not None and extent.users == {ctx}:
                    self.tiers.leave(extent, "ram")  # it is in the slot now, and on disk
        self.tiers.trim()
        return max(count, beyond)

    def prefetch(self, ops: list[Op], keys: list[bytes]) -> None:
        """Read what is on disk of `ops`, in the background."""
        holders = self._holders(keys[: self.reach(ops, keys)])
        absent = [e for e in holders if e.data is None and e.reading is None]
        coming = sum(map(self.tiers.size, absent))
        if coming <= self.tiers.budget // 2:
            self.tiers.trim(coming, keep=holders)
            for extent in absent:
                extent.used = self.tiers.clock()
                self.tiers.read_ahead(extent)

    def put_away(self, keys: list[bytes]) -> None:
        """Write what is in RAM only of a context that is idle."""
        for extent in self._holders(keys):
            if extent.dirty:
                self.tiers.write(extent)

    def drop(self, ctx: int, keys: list[bytes]) -> None:
        """The context is gone. Of what nobody else uses the operations with `keys` stay in RAM,
        until there is need of room: others may begin alike."""
        prefix = set(keys)
        for extent in self.used_by.pop(ctx, set()):
            extent.users.discard(ctx)
            if extent.users:
                continue
            if extent.data is None or extent.keys[-1] not in prefix:
                self.tiers.forget(extent)
            elif extent.file:
                self.tiers.leave(extent, "disk")

    # --- extents --------------------------------------------------------------------------------

    def _runs(self, ctx: int, ops: list[Op], keys: list[bytes]) -> list[tuple[int, int]]:
        """The operations without rows, in runs within a page. A run takes in the extent it follows
        where that is this context's own and not written yet: so a page does not go to pieces."""
        runs: list[tuple[int, int]] = []
        for at, key in enumerate(keys):
            if key in self.by_key:
                continue
            start = at
            if ops[at][1] % CHUNK and runs and runs[-1][1] == at:
                start, _ = runs.pop()
            elif ops[at][1] % CHUNK and keys[at - 1] in self.by_key:
                before = self.by_key[keys[at - 1]]
                if before.dirty and before.users == {ctx} and before.keys[-1] == keys[at - 1]:
                    start -= len(before.keys)
                    self.tiers.forget(before)
            runs.append((start, at + 1))
        return runs

    def _adopt(self, ops: list[Op], keys: list[bytes]) -> None:
        """Learn the keys of extents found on disk from a history that goes through them."""
        for end, key in enumerate(keys, 1):
            extent = self.found.pop(key, None)
            if extent is not None:
                start = end - 1
                while start and ops[start][1] > extent.first:
                    start -= 1
                known = _extent(ops, keys, start, end)
                extent.keys, extent.cost = known.keys, known.cost
                self.tiers.adopt(extent, known.parent)
                self.by_key = dict.fromkeys(extent.keys, extent) | self.by_key

    def _forgotten(self, extent: Extent) -> None:
        for index in (self.by_key, self.found):
            for key in extent.keys:
                if index.get(key) is extent:
                    del index[key]
        for ctx in extent.users:
            self.used_by[ctx].discard(extent)

    def _holders(self, keys: list[bytes]) -> list[Extent]:
        return list(dict.fromkeys(self.by_key[key] for key in keys if key in self.by_key))

    def _touch(self, ctx: int, extents: Iterable[Extent]) -> None:
        now = self.tiers.clock()
        mine = self.used_by.setdefault(ctx, set())
        for extent in extents:
            extent.used = now
            extent.users.add(ctx)
            mine.add(extent)

    def _parts(self, ops: list[Op], keys: list[bytes]) -> list[Part]:
        parts: list[Part] = []
        last: Extent | None = None
        for (_, pos, tokens), key in zip(ops, keys, strict=False):
            extent = self.by_key[key]
            assert extent.data is not None
            if extent is last:
                parts[-1] = parts[-1]._replace(tokens=parts[-1].tokens + len(tokens))
            else:
                parts.append(Part(extent.data, extent.tokens, pos - extent.first, len(tokens)))
            last = extent
        return parts

    def check(self) -> list[str]:
        """What is wrong; nothing, if all is well."""
        problems = self.tiers.check()
        held = self.tiers.all
        indexed = {*self.by_key.values(), *self.found.values()}
        problems += [f"{e.name} is in an index, and gone" for e in indexed - held]
        problems += [f"{e.name} is in no index" for e in held - indexed]
        users = {(ctx, extent) for ctx, mine in self.used_by.items() for extent in mine}
        if users != {(ctx, extent) for extent in held for ctx in extent.users}:
            problems.append("users are miscounted")
        return problems


def _extent(ops: list[Op], keys: list[bytes], start: int, end: int) -> Extent:
    """Of the operations from `start` to `end`."""
    first = ops[start][1]
    parent = keys[start - 1] if start else b""
    extent = Extent(parent, keys[start:end], first, length(ops[:end]) - first)
    costs = (DECODE if how == Decoded else PREFILL * len(t) for how, _, t in ops[start:end])
    extent.cost = sum(costs) / extent.tokens
    return extent
