"""The prefix cache: the snapshots of contexts (paper, section 3.4), in KV blocks that they share.

A block is found by the keys of its operations, and a key names all that was entered before. So
contexts that begin alike share blocks, a context that grew adds only its new rows, and one that was
rolled back or forked finds the blocks of its prefix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from .disk import Disk
from .engine import CHUNK_TOKENS
from .history import Op
from .kv_block import KVBlock
from .state_layout import BlockSlice, Bytes
from .tiered_cache import TieredCache

Cut = Callable[[list[tuple[int, int]]], list[Bytes]]  # copy rows (first, tokens) out of a slot
Paste = Callable[[list[BlockSlice]], None]  # into a slot


class PrefixCache:
    """Finds KV blocks by the keys of their operations; `tiers` keeps the blocks.

    `row_bytes` is the size of a token's keys and values; 0: the model's rows cannot be cut, and
    nothing is kept.
    """

    def __init__(
        self, budget: int, row_bytes: int, disk: Disk | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.tiers = TieredCache(budget, row_bytes, disk, clock, self._on_evicted)
        self.by_key: dict[bytes, KVBlock] = {}  # the key of an operation to a block with its rows
        self.unplaced: dict[bytes, KVBlock] = {}  # found on disk: only their last key is known
        self.used_by: dict[int, set[KVBlock]] = {}
        for name, size in disk.found if disk else []:
            block = self.unplaced[name.key] = KVBlock(b"", [name.key], name.first, name.tokens)
            self.tiers.add(block)
            self.tiers.set(block, file=max(size, 1))  # an empty file counts as one, too
        self.tiers.trim_disk()

    # --- contexts -------------------------------------------------------------------------------

    def match_prefix(self, ops: list[Op], keys: list[bytes]) -> int:
        """Return how many operations, from the first on, have blocks."""
        if self.unplaced:
            self._place(ops, keys)
        gaps = (at for at, key in enumerate(keys) if key not in self.by_key)
        return next(gaps, len(keys))

    def save(self, ctx: int, ops: list[Op], keys: list[bytes], cut: Cut) -> None:
        """Keep the rows of `ops`; `cut` copies those that are not in RAM."""
        if not self.tiers.row_bytes:
            return
        self.match_prefix(ops, keys)
        new = [KVBlock.of(ops, keys, *span) for span in self._new_spans(ctx, ops, keys)]
        held, ends = self._blocks(keys), set(keys)
        cold = [b for b in held if b.data is None and b.reading is None and b.keys[-1] in ends]
        self.tiers.trim(sum(map(self.tiers.size, [*new, *cold])), keep=held)
        for block in new:
            self.tiers.add(block)
            self.by_key.update(dict.fromkeys(block.keys, block))
        if fresh := [*new, *cold]:
            for block, rows in zip(fresh, cut([(b.first, b.tokens) for b in fresh]), strict=True):
                self.tiers.set(block, data=rows)
        self._touch(ctx, [*held, *new])
        self.tiers.trim()

    def load(self, ctx: int, ops: list[Op], keys: list[bytes], paste: Paste, *, beyond: int) -> int:
        """Paste the rows of the longest prefix of `ops` that has blocks, from RAM or disk.

        Returns:
            The prefix's length in operations; `beyond`, and nothing is pasted, if it is no longer.
        """
        held = self._blocks(keys[: self.match_prefix(ops, keys)])
        self._touch(ctx, held)
        absent = [block for block in held if block.data is None]
        self.tiers.trim(sum(map(self.tiers.size, absent)), keep=held)
        for block in absent:
            self.tiers.fetch(block)
        count = self.match_prefix(ops, keys)
        if count > beyond:
            paste(self._slices(ops[:count], keys))
            for block in held:
                if block.file and block.data is not None and block.users == {ctx}:
                    self.tiers.leave(block, "ram")  # its rows are in the slot now, and on disk
        self.tiers.trim()
        return max(count, beyond)

    def prefetch(self, ops: list[Op], keys: list[bytes]) -> None:
        """Read the blocks of `ops` that are on disk, in the background."""
        held = self._blocks(keys[: self.match_prefix(ops, keys)])
        absent = [b for b in held if b.data is None and b.reading is None]
        coming = sum(map(self.tiers.size, absent))
        if coming <= self.tiers.budget // 2:
            self.tiers.trim(coming, keep=held)
            for block in absent:
                block.last_used = self.tiers.clock()
                self.tiers.read_ahead(block)

    def offload(self, keys: list[bytes]) -> None:
        """Write the blocks with these keys that are in RAM only."""
        for block in self._blocks(keys):
            if block.dirty:
                self.tiers.write(block)

    def drop(self, ctx: int, keys: list[bytes]) -> None:
        """Forget a context's blocks. Blocks of the operations with `keys` stay in RAM until room is
        needed, since another context may begin with them."""
        prefix = set(keys)
        for block in self.used_by.pop(ctx, set()):
            block.users.discard(ctx)
            if block.users:
                continue
            if block.data is None or block.keys[-1] not in prefix:
                self.tiers.forget(block)
            elif block.file:
                self.tiers.leave(block, "disk")

    # --- blocks ---------------------------------------------------------------------------------

    def _new_spans(self, ctx: int, ops: list[Op], keys: list[bytes]) -> list[tuple[int, int]]:
        """Return the spans of operations that need new blocks, each within a page. A span takes in
        the block it follows if that is this context's own and not written yet, so that a page is
        not scattered over many blocks."""
        spans: list[tuple[int, int]] = []
        for at, key in enumerate(keys):
            if key in self.by_key:
                continue
            start = at
            if ops[at][1] % CHUNK_TOKENS and spans and spans[-1][1] == at:
                start, _ = spans.pop()
            elif ops[at][1] % CHUNK_TOKENS and keys[at - 1] in self.by_key:
                before = self.by_key[keys[at - 1]]
                if before.dirty and before.users == {ctx} and before.keys[-1] == keys[at - 1]:
                    start -= len(before.keys)
                    self.tiers.forget(before)
            spans.append((start, at + 1))
        return spans

    def _place(self, ops: list[Op], keys: list[bytes]) -> None:
        """Learn all keys of blocks found on disk from a history that goes through them."""
        for end, key in enumerate(keys, 1):
            block = self.unplaced.pop(key, None)
            if block is not None:
                start = end - 1
                while start and ops[start][1] > block.first:
                    start -= 1
                known = KVBlock.of(ops, keys, start, end)
                block.keys, block.cost_ms = known.keys, known.cost_ms
                self.tiers.set_parent(block, known.parent)
                self.by_key = dict.fromkeys(block.keys, block) | self.by_key

    def _on_evicted(self, block: KVBlock) -> None:
        for index in (self.by_key, self.unplaced):
            for key in block.keys:
                if index.get(key) is block:
                    del index[key]
        for ctx in block.users:
            self.used_by[ctx].discard(block)

    def _blocks(self, keys: list[bytes]) -> list[KVBlock]:
        """Return the blocks of the operations with these keys, each once, in order."""
        return list(dict.fromkeys(self.by_key[key] for key in keys if key in self.by_key))

    def _touch(self, ctx: int, blocks: Iterable[KVBlock]) -> None:
        now = self.tiers.clock()
        mine = self.used_by.setdefault(ctx, set())
        for block in blocks:
            block.last_used = now
            block.users.add(ctx)
            mine.add(block)

    def _slices(self, ops: list[Op], keys: list[bytes]) -> list[BlockSlice]:
        """Return the rows of `ops` as slices of their blocks, which are all in RAM."""
        slices: list[BlockSlice] = []
        last: KVBlock | None = None
        for (_, pos, tokens), key in zip(ops, keys, strict=False):
            block = self.by_key[key]
            assert block.data is not None
            if block is last:
                slices[-1] = slices[-1]._replace(tokens=slices[-1].tokens + len(tokens))
            else:
                slices.append(BlockSlice(block.data, block.tokens, pos - block.first, len(tokens)))
            last = block
        return slices

    def check(self) -> list[str]:
        """Return the invariants that do not hold; an empty list if all is well."""
        problems = self.tiers.check()
        held = self.tiers.blocks
        indexed = {*self.by_key.values(), *self.unplaced.values()}
        problems += [f"{b.name} is in an index, and gone" for b in indexed - held]
        problems += [f"{b.name} is in no index" for b in held - indexed]
        users = {(ctx, block) for ctx, mine in self.used_by.items() for block in mine}
        if users != {(ctx, block) for block in held for ctx in block.users}:
            problems.append("users are miscounted")
        return problems
