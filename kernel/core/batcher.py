"""Continuous batching: the run set, its slots, and the step that moves every context on.

The contexts that run hold the slots 0 to n-1, because llama.cpp batches only neighbours. Behind
them stay the contexts that do not run, until their slot is needed. What a context has to enter is
taken from wherever it is: its slot, another context's slot, an extent; the rest is computed. On a
model whose rows cannot be cut, no context leaves its slot but to be computed again.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from aios.syscalls.errors import AiosError, BadGrammar, Internal
from aios.syscalls.messages import Decoding, Logprob

from .disk import Disk
from .engine import CHUNK, Engine
from .extents import Extents
from .history import Op, chain, common, length, link, plan
from .protocol import Counters, Decoded, Halt, Halted, Out, Prefilled, Run, Step, Why
from .sampler import Sampler
from .text import TextStream

WORTH = 500  # tokens that come from disk in the time in which one is computed, at least
LOOK_S = 0.05  # between two looks at what is being written


class Context:
    """A context as the core knows it: what was computed of it, and how much is in its slot."""

    def __init__(self, ctx: int) -> None:
        self.ctx = ctx
        self.ops: list[Op] = []
        self.keys: list[bytes] = []  # of `ops`
        self.here = 0  # how many operations its slot holds
        self.used = 0  # the step it ran last


class Generation:
    """A context's answer in the making: operations to do, then a token to draw, again and again."""

    def __init__(self, engine: Engine, context: Context, run: Run) -> None:
        tokens = [token for _, segment in run.history for token in segment]
        self.context = context
        self.run = run.run
        self.decoding = run.decoding
        self.generated = run.generated
        self.length = len(tokens)
        self.ops: list[Op] = []  # of the history
        self.keys: list[bytes] = []
        self.todo: list[Op] = []
        self.digest = run.digest
        self.since = 0  # the step in which it came
        self.ended: Why | None = None
        self.error: AiosError | None = None
        self.text = TextStream(run.decoding.stop)
        answer = tokens[self.length - run.generated :]
        held = run.decoding.schema is not None or run.decoding.grammar is not None
        grammar = engine.grammars.start(run.decoding, answer) if held else None
        self.sampler = Sampler(engine, run.decoding, tokens, grammar)
        for token in answer:
            self.text.feed(engine.piece(token))

    def next_is(self, how: str) -> bool:
        return self.ended is None and self.todo[0][0] == how


class Batcher:
    """Runs contexts on the engine's slots.

    `certified` is the largest decode batch that is exact. `snapshot_bytes` bounds the KV bytes
    kept in RAM; `disk` has those of contexts that are idle for `idle_ttl` seconds, and what RAM
    has no room for. What is nowhere is computed again.
    """

    def __init__(
        self, engine: Engine, certified: int, snapshot_bytes: int, disk: Disk | None = None,
        idle_ttl: float = 60.0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.batch = certified or engine.slots
        self.extents = Extents(snapshot_bytes, engine.row_bytes, disk, clock)
        self.idle_ttl, self.clock = idle_ttl, clock
        self.slots: list[Context | None] = [None] * engine.slots
        self.contexts: dict[int, Context] = {}
        self.running: dict[int, Generation] = {}  # by slot
        self.saves = self.restores = self.replayed = self.shared = self.steps = 0
        self.count = 0  # of calls to step
        self.idle: dict[int, float] = {}  # who has its answer since when, the longest first
        self.outs: list[Out] = []
        self.halted: list[Halted] = []

    # --- commands -------------------------------------------------------------------------------

    def run(self, run: Run) -> None:
        context = self.contexts.setdefault(run.ctx, Context(run.ctx))
        slot = self._slot_for(context)
        if slot in self.running:
            error = Internal("the core has no slot for the context, or runs it already")
            self.halted.append(Halted(run.ctx, run.run, "failed", error=error.to_wire()))
            return
        self._seat(context, slot)
        generation = Generation(self.engine, context, run)
        generation.since = self.count
        self.idle.pop(run.ctx, None)
        self._rewind(slot, generation, plan(run.history))
        self._advance(slot, generation)
        self.running[slot] = generation

    def halt(self, halt: Halt) -> None:
        for generation in self.running.values():
            if generation.context.ctx == halt.ctx:
                generation.ended = halt.why
        self._sweep()

    def drop(self, ctx: int) -> None:
        context = self.contexts.pop(ctx, None)
        if context is None:
            return
        self.halt(Halt(ctx, "cancelled"))
        self.idle.pop(ctx, None)
        prefix = _whole_chunks(context.ops)
        if context in self.slots:
            slot = self.slots.index(context)
            self._save(slot, min(prefix, context.here))
            self.engine.clear(slot)
            self.slots[slot] = None
        self.extents.drop(ctx, context.keys[:prefix])

    def prefetch(self, ctx: int) -> None:
        """The context will run soon: what is on disk of it is read while others are computed."""
        context = self.contexts.get(ctx)
        if context is not None and context not in self.slots:
            self.extents.prefetch(context.ops, context.keys)

    def reset(self, contexts: list[int]) -> None:
        """Another kernel: nothing runs, and of what is here these contexts are kept."""
        for generation in self.running.values():
            generation.sampler.close()
        self.running.clear()
        self.outs, self.halted = [], []
        for ctx in self.contexts.keys() - set(contexts):
            self.drop(ctx)

    # --- the step -------------------------------------------------------------------------------

    def step(self) -> Step:
        """One prefill chunk for one context, one token for all that decode; what came of it."""
        self.count += 1
        self.extents.tiers.poll()
        self._put_away()
        self._close_ranks()
        self._prefill()
        self._decode()
        self._sweep()
        done = Step(self.outs, self.halted, self.counters())
        self.outs, self.halted = [], []
        return done

    def due(self) -> float | None:
        """Seconds until there is something to do though nothing runs; None: never."""
        tiers = self.extents.tiers
        if tiers.jobs:
            return LOOK_S
        if tiers.disk is None or not self.idle:
            return None
        return max(0.0, next(iter(self.idle.values())) + self.idle_ttl - self.clock())

    def rest(self) -> Step:
        """What is to do while nothing runs."""
        self.extents.tiers.poll()
        self._put_away()
        return Step([], [], self.counters())

    def _prefill(self) -> None:
        waiting = [(slot, gen) for slot, gen in self.running.items() if gen.next_is(Prefilled)]
        if waiting:
            # The shortest first, but each step of waiting makes up for a chunk: nobody starves.
            slot, gen = min(waiting, key=lambda at: len(at[1].todo) + at[1].since)
            self._advance(slot, gen)
            how, pos, tokens = gen.todo[0]
            if how == Prefilled:
                self.engine.prefill(slot, tokens, pos)
                self._entered(gen, len(tokens) - 1)

    def _decode(self) -> None:
        ready = [(slot, gen) for slot, gen in self.running.items() if gen.next_is(Decoded)]
        for part in self._batches(sorted(ready, key=lambda at: at[0])):
            self.engine.decode([(slot, gen.todo[0][2][0], gen.todo[0][1]) for slot, gen in part])
            self.steps += 1
            for row, (_, gen) in enumerate(part):
                self._entered(gen, self.engine.index[row])

    def _batches(self, ready: list[tuple[int, Generation]]) -> list[list[tuple[int, Generation]]]:
        """Cut into batches that are exact. Where not all sizes are, a batch has no gaps either:
        the company that the engine puts into gaps would make it larger."""
        parts: list[list[tuple[int, Generation]]] = []
        for slot, gen in ready:
            gap = self.batch < len(self.slots) and parts and parts[-1][-1][0] != slot - 1
            if not parts or gap or len(parts[-1]) == self.batch:
                parts.append([])
            parts[-1].append((slot, gen))
        return parts

    def _entered(self, gen: Generation, index: int) -> None:
        """The first operation of `gen` is in the KV cache; its logits are at `index`."""
        context = gen.context
        op = gen.todo.pop(0)
        context.used = self.count
        context.here += 1
        fed = again = 0
        if context.here <= len(context.ops):
            again = len(op[2])
        else:
            context.keys.append(link(_last(context.keys), op))
            context.ops.append(op)
            fed = len(op[2])
        out = self._draw(gen, index, fed) if not gen.todo else Out(context.ctx, gen.run, fed)
        out.again = again
        self.replayed += again
        self.outs.append(out)

    def _draw(self, gen: Generation, index: int, fed: int) -> Out:
        logits = self.engine.logits(index)
        if gen.decoding.digest:
            gen.digest = blake2b(logits.tobytes(), key=gen.digest, digest_size=32).digest()
        try:
            token = gen.sampler.draw(index, gen.length)
        except BadGrammar as error:
            gen.ended, gen.error = "failed", error
            return Out(gen.context.ctx, gen.run, fed, digest=gen.digest)
        if self.engine.is_end(token) and (gen.sampler.grammar or not gen.decoding.ignore_eos):
            gen.ended = "stop"
            return Out(gen.context.ctx, gen.run, fed, digest=gen.digest)
        text = gen.text.feed(self.engine.piece(token))
        gen.todo.append((Decoded, gen.length, (token,)))
        gen.length += 1
        gen.generated += 1
        if gen.text.stopped or gen.sampler.complete:
            gen.ended = "stop"
        elif gen.generated >= gen.decoding.max_tokens:
            gen.ended = "length"
        elif gen.length >= self.engine.window:
            gen.ended = "context_full"
        logprob = _logprob(logits, token, gen.decoding)
        return Out(gen.context.ctx, gen.run, fed, token, text, logprob, gen.digest)

    def _sweep(self) -> None:
        """Take what has ended out of the run set; its context stays where it is."""
        for slot, gen in list(self.running.items()):
            if gen.ended is not None:
                held = gen.text.flush()
                error = gen.error.to_wire() if gen.error else None
                self.halted.append(Halted(gen.context.ctx, gen.run, gen.ended, held, error))
                gen.sampler.close()
                if gen.ended != "preempted":
                    self.idle[gen.context.ctx] = self.clock()
                del self.running[slot]

    # --- slots and snapshots --------------------------------------------------------------------

    def _slot_for(self, context: Context) -> int:
        """Where it is already, or the lowest slot that does not run; 0 if all do. Where nothing can
        move, the slot that is empty or was not used for longest."""
        if context in self.slots:
            return self.slots.index(context)
        free = [slot for slot in range(len(self.slots)) if slot not in self.running]
        if not self.engine.row_bytes:
            free.sort(key=lambda slot: there.used if (there := self.slots[slot]) else -1)
        return free[0] if free else 0

    def _close_ranks(self) -> None:
        """Move what runs into the slots 0 to n-1, unless it would not be the same there."""
        if not self.engine.row_bytes:
            return
        for hole in range(len(self.running)):
            if hole not in self.running:
                gen = self.running.pop(max(self.running))
                self._seat(gen.context, hole)
                self.running[hole] = gen

    def _seat(self, context: Context, slot: int) -> None:
        """Put `context` into `slot`. Whoever is there moves to the slot that `context` leaves, or
        to an empty one; if there is none, it is saved."""
        there = self.slots[slot]
        if there is context:
            return
        spare = next((at for at in (context, None) if at in self.slots), there)
        other = self.slots.index(spare)
        if there is not None and other == slot:
            self._save(slot, there.here)
            self.saves += 1
            there.here = 0
            self.engine.clear(slot)
        elif there is not spare:
            self.engine.swap(slot, other)
            self.slots[other] = there
        self.slots[slot] = context

    def _save(self, slot: int, count: int) -> None:
        """Keep the first `count` operations that a slot holds."""
        context = self.slots[slot]
        assert context is not None
        cut = partial(self.engine.cut, slot)
        self.extents.save(context.ctx, context.ops[:count], context.keys[:count], cut)

    def _put_away(self) -> None:
        """Contexts whose agents let them wait go to disk, before there is need of their room."""
        if self.extents.tiers.disk is None:
            return
        now = self.clock()
        while self.idle and not self.extents.tiers.writing:  # one by one: the disk may be slow
            ctx, since = next(iter(self.idle.items()))
            if now - since <= self.idle_ttl:
                return
            del self.idle[ctx]
            context = self.contexts[ctx]
            if context.here:
                self._save(self.slots.index(context), context.here)
            self.extents.put_away(context.keys)

    def _rewind(self, slot: int, gen: Generation, ops: list[Op]) -> None:
        """Keep of the slot what begins `ops`, at most all but the last, which is computed for its
        logits; the rest is to do."""
        context = gen.context
        same = common(context.ops, ops)
        del context.ops[same:], context.keys[same:]
        gen.ops, gen.keys = ops, [*context.keys, *chain(ops[same:], _last(context.keys))]
        keep = min(context.here, same, len(ops) - 1)
        context.here = keep if keep == context.here or self.engine.row_bytes else 0
        gen.todo = ops[context.here :]
        self.engine.clear(slot, gen.todo[0][1])

    def _advance(self, slot: int, gen: Generation) -> None:
        """Bring into the slot what extents or other slots have of the operations to do, all but the
        last, if that is quicker than to compute them. So what several begin with is computed once.
        """
        if not self.engine.row_bytes:
            return
        context, ops, keys = gen.context, gen.ops[:-1], gen.keys[:-1]
        lender, lent = self._lender(keys)
        held = self.extents.reach(ops, keys)
        count = max(held, lent)
        total = length(ops[:count])
        if (total - gen.todo[0][1]) * WORTH <= total:
            return
        if lent >= held:
            self.engine.copy(lender, slot)
            self.engine.clear(slot, total)
        else:
            paste = partial(self.engine.paste, slot)
            count = self.extents.load(
                context.ctx, ops[:held], keys[:held], paste, beyond=context.here
            )
            self.restores += count > context.here
        self.shared += max(0, length(ops[:count]) - length(context.ops))
        context.here = count
        if count > len(context.ops):
            context.ops, context.keys = ops[:count], keys[:count]
        gen.todo = gen.ops[count:]

    def _lender(self, keys: list[bytes]) -> tuple[int, int]:
        """The slot that has the most operations with these keys, from the first on; how many."""

        def lends(slot: int) -> int:
            context = self.slots[slot]
            theirs = context.keys[: context.here] if context is not None else []
            both = range(min(len(keys), len(theirs)))
            return bisect_left(both, True, key=lambda at: keys[at] != theirs[at])

        best = max(range(len(self.slots)), key=lends)
        return best, lends(best)

    def counters(self) -> Counters:
        held = self.extents.tiers
        return Counters(
            steps=self.steps,
            saves=self.saves,
            restores=self.restores,
            replayed=self.replayed,
            shared=self.shared,
            extents=len(held.all),
            snapshot_bytes=held.ram,
            disk_bytes=held.on_disk,
            written=held.written,
            read=held.read,
            lost=held.lost,
            bad_snapshots=held.bad,
            disk_failures=held.failures,
        )


def _last(keys: list[bytes]) -> bytes:
    return keys[-1] if keys else b""


def _whole_chunks(ops: list[Op]) -> int:
    """How many operations at the start are whole prefill chunks: what a context that was not forked
    from this one may begin with."""
    return next(
        (at for at, (how, _, tokens) in enumerate(ops) if how == Decoded or len(tokens) < CHUNK),
        len(ops),
    )


def _logprob(logits: NDArray[np.float32], token: int, decoding: Decoding) -> Logprob | None:
    if decoding.logprobs is None:
        return None
    shifted = logits.astype(np.float64) - logits.max()
    logs = shifted - np.log(np.exp(shifted).sum())
    count = decoding.logprobs
    best = np.argpartition(logs, -count)[-count:] if count else np.array([], np.int64)
    best = best[np.argsort(-logs[best], kind="stable")]
    top = [(int(t), float(logs[t])) for t in best]
    return Logprob(token=token, logprob=float(logs[token]), top=top)
