"""Continuous batching: the runs in progress, their slots, and the step that advances all of them.

The running sequences hold slots 0 to n-1, because llama.cpp batches only neighbours. The others
stay in the slots above until those are needed. Operations that a slot, another sequence's slot or
a KV block already has are reused; the rest is computed. On a model whose rows cannot be moved, a
sequence that loses its slot is computed again.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

from aios.syscalls.errors import Internal

from .active_run import ActiveRun, Sequence
from .disk import Disk
from .engine import CHUNK_TOKENS, Engine
from .history import Op, chain, common_prefix_length, length, link, plan
from .prefix_cache import PrefixCache
from .protocol import DECODED, PREFILLED, Counters, Halt, Halted, Out, Run, Step
from .step_composition import WaitingPrefill, choose_prefill, decode_batches

LOADED_TOKENS_PER_COMPUTED = 500  # tokens loaded from disk in the time one is computed, at least
POLL_S = 0.05  # between two looks at writes in progress


class Batcher:
    """Runs sequences on the engine's slots.

    `certified` is the largest exact decode batch, in sequences; 0: all slots, exact or not.
    `snapshot_bytes` bounds the KV blocks in RAM. `disk` takes those of sequences idle for
    `idle_ttl` seconds, and what RAM has no room for. A block that is in neither is computed again.
    """

    def __init__(
        self, engine: Engine, certified: int, snapshot_bytes: int, disk: Disk | None = None,
        idle_ttl: float = 60.0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.max_batch = certified or engine.slots
        self.prefix_cache = PrefixCache(snapshot_bytes, engine.row_bytes, disk, clock)
        self.idle_ttl, self.clock = idle_ttl, clock
        self.slots: list[Sequence | None] = [None] * engine.slots
        self.sequences: dict[int, Sequence] = {}  # by context
        self.running: dict[int, ActiveRun] = {}  # by slot
        self.saves = self.restores = self.replayed = self.shared = self.steps = 0
        self.step_count = 0  # calls of `step`; `steps` counts decode batches
        self.idle_since: dict[int, float] = {}  # by context, the longest idle first
        self.outs: list[Out] = []
        self.halted: list[Halted] = []

    # --- commands -------------------------------------------------------------------------------

    def run(self, run: Run) -> None:
        """Give the context a slot, reuse what is cached of its history, leave the rest pending."""
        sequence = self.sequences.setdefault(run.ctx, Sequence(run.ctx))
        slot = self._choose_slot(sequence)
        if slot in self.running:
            error = Internal("the core has no slot for the context, or runs it already")
            self.halted.append(Halted(run.ctx, run.run, "failed", error=error.to_wire()))
            return
        self._assign_slot(sequence, slot)
        active = ActiveRun(self.engine, sequence, run, self.step_count)
        self.idle_since.pop(run.ctx, None)
        self._rewind(slot, active, plan(run.history))
        self._reuse_prefix(slot, active)
        self.running[slot] = active

    def halt(self, halt: Halt) -> None:
        for active in self.running.values():
            if active.sequence.ctx == halt.ctx:
                active.ended = halt.why
        self._collect_ended()

    def drop(self, ctx: int) -> None:
        """Forget a context; the whole chunks that it begins with stay in RAM for others."""
        sequence = self.sequences.pop(ctx, None)
        if sequence is None:
            return
        self.halt(Halt(ctx, "cancelled"))
        self.idle_since.pop(ctx, None)
        prefix = _whole_chunks(sequence.ops)
        if sequence in self.slots:
            slot = self.slots.index(sequence)
            self._save(slot, min(prefix, sequence.cached))
            self.engine.clear(slot)
            self.slots[slot] = None
        self.prefix_cache.drop(ctx, sequence.keys[:prefix])

    def prefetch(self, ctx: int) -> None:
        """Start to read the context's blocks from disk while others are computed: it runs soon."""
        sequence = self.sequences.get(ctx)
        if sequence is not None and sequence not in self.slots:
            self.prefix_cache.prefetch(sequence.ops, sequence.keys)

    def reset(self, contexts: list[int]) -> None:
        """Serve another kernel: stop all runs, and drop all contexts but these."""
        for active in self.running.values():
            active.sampler.close()
        self.running.clear()
        self.outs, self.halted = [], []
        for ctx in self.sequences.keys() - set(contexts):
            self.drop(ctx)

    # --- the step -------------------------------------------------------------------------------

    def step(self) -> Step:
        """Compute one prefill chunk for one run and one token for each run that decodes."""
        self.step_count += 1
        if self.prefix_cache.tiers.jobs:
            self.prefix_cache.tiers.poll()
        self._flush_idle()
        self._compact_slots()
        self._prefill()
        self._decode()
        self._collect_ended()
        done = Step(self.outs, self.halted, self.counters())
        self.outs, self.halted = [], []
        return done

    def idle_timeout(self) -> float | None:
        """Return the seconds until `idle_step` has work to do; None: until the next command."""
        tiers = self.prefix_cache.tiers
        if tiers.jobs:
            return POLL_S
        if tiers.disk is None or not self.idle_since:
            return None
        return max(0.0, next(iter(self.idle_since.values())) + self.idle_ttl - self.clock())

    def idle_step(self) -> Step:
        """Do what is due while nothing runs: complete reads and writes, offload idle sequences."""
        self.prefix_cache.tiers.poll()
        self._flush_idle()
        return Step([], [], self.counters())

    def _prefill(self) -> None:
        waiting = [
            WaitingPrefill(slot, len(active.pending), active.started_step)
            for slot, active in self.running.items()
            if active.next_is(PREFILLED)
        ]
        if waiting:
            slot = choose_prefill(waiting)
            active = self.running[slot]
            self._reuse_prefix(slot, active)  # another may have computed it meanwhile
            how, pos, tokens = active.pending[0]
            if how == PREFILLED:
                self.engine.prefill(slot, tokens, pos)
                self._record_entered(active, len(tokens) - 1)

    def _decode(self) -> None:
        ready = [slot for slot, active in self.running.items() if active.next_is(DECODED)]
        gapless = self.max_batch < len(self.slots)
        for slots in decode_batches(ready, self.max_batch, gapless=gapless):
            batch = [(slot, self.running[slot]) for slot in slots]
            self.engine.decode(
                [(slot, active.pending[0][2][0], active.pending[0][1]) for slot, active in batch]
            )
            self.steps += 1
            for at, (_, active) in enumerate(batch):
                self._record_entered(active, self.engine.index[at])

    def _record_entered(self, active: ActiveRun, index: int) -> None:
        """Note that the first pending operation is in the KV cache, its logits at `index`; draw a
        token if it was the last one."""
        sequence = active.sequence
        op = active.pending.pop(0)
        sequence.last_step = self.step_count
        sequence.cached += 1
        fed = again = 0
        if sequence.cached <= len(sequence.ops):
            again = len(op[2])
        else:
            sequence.keys.append(link(_last(sequence.keys), op))
            sequence.ops.append(op)
            fed = len(op[2])
        out = Out(sequence.ctx, active.id, fed) if active.pending else active.draw(index, fed)
        out.again = again
        self.replayed += again
        self.outs.append(out)

    def _collect_ended(self) -> None:
        """Report the runs that have ended; their sequences stay in their slots."""
        for slot, active in list(self.running.items()):
            if active.ended is not None:
                self.halted.append(active.close())
                if active.ended != "preempted":
                    self.idle_since[active.sequence.ctx] = self.clock()
                del self.running[slot]

    # --- slots ----------------------------------------------------------------------------------

    def _choose_slot(self, sequence: Sequence) -> int:
        """Return the slot that has `sequence`, else the lowest that does not run; 0 if all run.
        Where rows cannot be moved, prefer an empty slot, then the least recently used."""
        if sequence in self.slots:
            return self.slots.index(sequence)
        free = [slot for slot in range(len(self.slots)) if slot not in self.running]
        if not self.engine.row_bytes:
            free.sort(key=lambda slot: held.last_step if (held := self.slots[slot]) else -1)
        return free[0] if free else 0

    def _compact_slots(self) -> None:
        """Move the running sequences into slots 0 to n-1, unless rows cannot be moved."""
        if not self.engine.row_bytes:
            return
        for hole in range(len(self.running)):
            if hole not in self.running:
                active = self.running.pop(max(self.running))
                self._assign_slot(active.sequence, hole)
                self.running[hole] = active

    def _assign_slot(self, sequence: Sequence, slot: int) -> None:
        """Put `sequence` into `slot`. Its occupant moves to the slot that `sequence` leaves, or to
        an empty one; if there is none, its rows are saved."""
        occupant = self.slots[slot]
        if occupant is sequence:
            return
        spare = next((each for each in (sequence, None) if each in self.slots), occupant)
        other = self.slots.index(spare)
        if occupant is not None and other == slot:
            self._save(slot, occupant.cached)
            self.saves += 1
            occupant.cached = 0
            self.engine.clear(slot)
        elif occupant is not spare:
            self.engine.swap(slot, other)
            self.slots[other] = occupant
        self.slots[slot] = sequence

    # --- cached rows ----------------------------------------------------------------------------

    def _save(self, slot: int, count: int) -> None:
        """Keep the first `count` operations that a slot holds as KV blocks."""
        sequence = self.slots[slot]
        assert sequence is not None
        cut = partial(self.engine.cut, slot)
        self.prefix_cache.save(sequence.ctx, sequence.ops[:count], sequence.keys[:count], cut)

    def _flush_idle(self) -> None:
        """Offload sequences that have been idle for `idle_ttl` before their room is needed: one at
        a time, since the disk may be slow."""
        if self.prefix_cache.tiers.disk is None:
            return
        now = self.clock()
        while self.idle_since and not self.prefix_cache.tiers.writing:
            ctx, since = next(iter(self.idle_since.items()))
            if now - since <= self.idle_ttl:
                return
            del self.idle_since[ctx]
            sequence = self.sequences[ctx]
            if sequence.cached:
                self._save(self.slots.index(sequence), sequence.cached)
            self.prefix_cache.offload(sequence.keys)

    def _rewind(self, slot: int, active: ActiveRun, ops: list[Op]) -> None:
        """Cut the slot back to the operations that `ops` begins with, and leave the rest pending:
        at least the last operation, whose logits are needed."""
        sequence = active.sequence
        same = common_prefix_length(sequence.ops, ops)
        del sequence.ops[same:], sequence.keys[same:]
        active.ops, active.keys = ops, [*sequence.keys, *chain(ops[same:], _last(sequence.keys))]
        keep = min(sequence.cached, same, len(ops) - 1)
        sequence.cached = keep if keep == sequence.cached or self.engine.row_bytes else 0
        active.pending = ops[sequence.cached :]
        self.engine.clear(slot, active.pending[0][1])

    def _reuse_prefix(self, slot: int, active: ActiveRun) -> None:
        """Copy pending operations but the last into the slot, from KV blocks or from another slot,
        if that is quicker than to compute them. So a prefix that several share is computed once."""
        if not self.engine.row_bytes:
            return
        sequence, ops, keys = active.sequence, active.ops[:-1], active.keys[:-1]
        source, in_slot = self._longest_prefix_slot(keys)
        in_blocks = self.prefix_cache.match_prefix(ops, keys)
        count = max(in_blocks, in_slot)
        total = length(ops[:count])
        if (total - active.pending[0][1]) * LOADED_TOKENS_PER_COMPUTED <= total:
            return
        if in_slot >= in_blocks:
            self.engine.copy(source, slot)
            self.engine.clear(slot, total)
        else:
            paste = partial(self.engine.paste, slot)
            count = self.prefix_cache.load(
                sequence.ctx, ops[:in_blocks], keys[:in_blocks], paste, beyond=sequence.cached
            )
            self.restores += count > sequence.cached
        self.shared += max(0, length(ops[:count]) - length(sequence.ops))
        sequence.cached = count
        if count > len(sequence.ops):
            sequence.ops, sequence.keys = ops[:count], keys[:count]
        active.pending = active.ops[count:]

    def _longest_prefix_slot(self, keys: list[bytes]) -> tuple[int, int]:
        """Return the slot that holds the longest prefix of the operations with these keys, and that
        prefix's length in operations."""

        def prefix_length(slot: int) -> int:
            sequence = self.slots[slot]
            theirs = sequence.keys[: sequence.cached] if sequence is not None else []
            both = range(min(len(keys), len(theirs)))
            return bisect_left(both, True, key=lambda at: keys[at] != theirs[at])

        best = max(range(len(self.slots)), key=prefix_length)
        return best, prefix_length(best)

    def counters(self) -> Counters:
        tiers = self.prefix_cache.tiers
        return Counters(
            steps=self.steps,
            saves=self.saves,
            restores=self.restores,
            replayed=self.replayed,
            shared=self.shared,
            extents=len(tiers.blocks),
            snapshot_bytes=tiers.ram,
            disk_bytes=tiers.on_disk,
            written=tiers.written,
            read=tiers.read,
            lost=tiers.lost,
            bad_snapshots=tiers.bad,
            disk_failures=tiers.failures,
        )


def _last(keys: list[bytes]) -> bytes:
    return keys[-1] if keys else b""


def _whole_chunks(ops: list[Op]) -> int:
    """Return how many operations at the start are whole prefill chunks: the prefix that a context
    not forked from this one may share."""
    return next(
        (
            at
            for at, (how, _, tokens) in enumerate(ops)
            if how == DECODED or len(tokens) < CHUNK_TOKENS
        ),
        len(ops),
    )
