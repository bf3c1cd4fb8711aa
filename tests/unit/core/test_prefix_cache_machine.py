"""The prefix cache at random: rows and counts are right, whatever is saved, shared, evicted,
damaged or restarted."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from conftest import fewer
from fake_slot import PAGE, PLENTY, ROW, Clock, Slot, history, rows_of
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aios.kernel.core.disk import Disk
from aios.kernel.core.engine import CHUNK_TOKENS
from aios.kernel.core.history import Op, chain, length, plan
from aios.kernel.core.prefix_cache import PrefixCache
from aios.kernel.core.protocol import DECODED, PREFILLED, Segment


class Machine(RuleBasedStateMachine):
    """Little room: anything may be lost, at any time, and nothing may come back wrong."""

    ram, disk_bytes = 5 * PAGE, 9 * PAGE

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="aios-"))
        self.clock = Clock()
        self.contexts: dict[int, list[Op]] = {}
        self.last = self.seed = 0
        self.start()

    def start(self) -> None:
        self.disk = Disk(self.root, b"f" * 16, self.disk_bytes)
        self.cache = PrefixCache(self.ram, ROW, self.disk, self.clock)
        self.saved: dict[int, int] = {}  # operations of each context that must come back

    def teardown(self) -> None:
        assert self.cache.check() == []
        shutil.rmtree(self.root)

    def one(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.contexts)))

    @rule(tokens=st.integers(1, 3 * CHUNK_TOKENS))
    def open(self, tokens: int) -> None:
        self.last += 1
        self.seed += 1000
        self.contexts[self.last] = history((PREFILLED, tokens), start=self.seed)

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        ops = self.contexts[self.one(data)]
        self.last += 1
        self.contexts[self.last] = ops[: data.draw(st.integers(1, len(ops)))]

    @precondition(lambda self: self.contexts)
    @rule(
        data=st.data(),
        decoded=st.booleans(),
        tokens=st.integers(1, CHUNK_TOKENS),
        same=st.booleans(),
    )
    def grow(self, data: st.DataObject, decoded: bool, tokens: int, same: bool) -> None:
        """Forks may go on alike, `same`, or apart."""
        ctx = self.one(data)
        ops = self.contexts[ctx]
        self.seed += 1000
        start = 0 if same else self.seed
        added = [*range(start, start + tokens)]
        segment: Segment = (DECODED, added) if decoded else (PREFILLED, added)
        new = plan([(PREFILLED, [0] * length(ops)), segment])
        self.contexts[ctx] = ops + [op for op in new if op[1] >= length(ops)]

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        ctx = self.one(data)
        self.contexts[ctx] = self.contexts[ctx][
            : data.draw(st.integers(1, len(self.contexts[ctx])))
        ]

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        ctx = self.one(data)
        ops = self.contexts[ctx]
        self.cache.save(ctx, ops, chain(ops), Slot(ops).cut)
        self.saved[ctx] = len(ops)
        self.came_back(ctx)

    @precondition(lambda self: self.contexts)
    @rule(data=st.data(), share=st.floats(0, 1))
    def load(self, data: st.DataObject, share: float) -> None:
        ctx = self.one(data)
        ops = self.contexts[ctx]
        beyond = int(share * (len(ops) - 1))
        slot = Slot(ops[:beyond])
        count = self.cache.load(ctx, ops, chain(ops), slot.paste, beyond=beyond)
        assert beyond <= count <= len(ops)
        assert slot.rows.tobytes() == rows_of(ops[:count]).tobytes()
        self.complete(ctx, count)
        self.came_back(ctx)

    def complete(self, ctx: int, count: int) -> None:
        pass

    def came_back(self, ctx: int) -> None:
        pass

    def dropped(self, ops: list[Op]) -> None:
        pass

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def offload(self, data: st.DataObject) -> None:
        self.cache.offload(chain(self.contexts[self.one(data)]))

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def prefetch(self, data: st.DataObject) -> None:
        ops = self.contexts[self.one(data)]
        self.cache.prefetch(ops, chain(ops))

    @precondition(lambda self: self.contexts)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        ctx = self.one(data)
        ops = self.contexts.pop(ctx)
        keys = chain(ops)
        self.cache.drop(ctx, keys[: data.draw(st.integers(0, len(keys)))])
        self.saved.pop(ctx, None)
        self.dropped(ops)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.cache.tiers.poll()

    @rule()
    def audit(self) -> None:
        assert self.cache.check() == []

    @invariant()
    def within_budgets(self) -> None:
        tiers = self.cache.tiers
        assert tiers.ram <= self.ram + tiers.writing
        assert tiers.on_disk <= self.disk_bytes


class Tight(Machine):
    @precondition(lambda self: self.contexts)
    @rule(which=st.integers(0, 2**16), where=st.integers(0, 2**16), cut=st.booleans())
    def damage(self, which: int, where: int, cut: bool) -> None:
        """Which files there are depends on how far the writer was at a restart."""
        self.cache.tiers.flush()
        files = sorted(path for path in self.disk.folder.iterdir() if path.stat().st_size)
        if files:
            path = files[which % len(files)]
            content = bytearray(path.read_bytes())
            at = where % len(content)
            content[at] ^= 0x10
            path.write_bytes(content[:at] if cut else content)

    @rule()
    def restart(self) -> None:
        self.cache.tiers.writer.shutdown(cancel_futures=True)  # what was not written yet, is not
        self.cache.tiers.reader.shutdown(cancel_futures=True)
        self.start()


class Roomy(Machine):
    """Room for all: all that was saved comes back, after a restart all that was put away. Until a
    context has come back nothing is known to be its own: what it shares with one that is dropped
    goes with that."""

    ram = disk_bytes = PLENTY

    def start(self) -> None:
        super().start()
        self.away: set[int] = set()  # contexts that have not come back since the restart

    def came_back(self, ctx: int) -> None:
        self.away.discard(ctx)

    def dropped(self, ops: list[Op]) -> None:
        for ctx in self.away & self.contexts.keys():
            if self.contexts[ctx][0] == ops[0]:
                self.saved[ctx] = 0

    def complete(self, ctx: int, count: int) -> None:
        assert count >= min(self.saved.get(ctx, 0), len(self.contexts[ctx]))
        assert self.cache.tiers.lost == self.cache.tiers.bad == 0

    @rule()
    def restart(self) -> None:
        for block in list(self.cache.tiers.blocks):
            if block.dirty:
                self.cache.tiers.write(block)
        self.cache.tiers.flush()
        saved = self.saved
        self.start()
        self.saved, self.away = saved, set(self.contexts)


TestTight = Tight.TestCase
TestRoomy = Roomy.TestCase
TestRoomy.settings = fewer(2)
