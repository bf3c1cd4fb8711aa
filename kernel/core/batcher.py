"""Continuous batching: the run set, its slots, and the step that moves every context on.

A history is cut into operations, a prefill chunk or one decoded token each. The cut depends on
the history alone, so computing an operation again gives the same bits: whatever the KV cache
does not hold any more is replayed.

The contexts that run hold the slots 0 to n-1, because llama.cpp batches only neighbours. Behind
them stay the contexts that do not run, until their slot is needed.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from aios.syscalls.errors import AiosError, BadGrammar, Internal
from aios.syscalls.messages import Decoding, Logprob

from .llama import CHUNK, Engine
from .protocol import Counters, Decoded, Halt, Halted, Out, Prefilled, Run, Segment, Step, Why
from .text import TextStream

Op = tuple[str, int, tuple[int, ...]]  # how, position of the first token, tokens


def plan(history: list[Segment]) -> list[Op]:
    """Cut a history into operations. Chunks end at absolute multiples of CHUNK."""
    ops: list[Op] = []
    pos = 0
    for how, tokens in history:
        end = pos + len(tokens)
        start = pos
        while pos < end:
            stop = pos + 1 if how == Decoded else min(end, (pos // CHUNK + 1) * CHUNK)
            ops.append((how, pos, tuple(tokens[pos - start : stop - start])))
            pos = stop
    return ops


class Context:
    """A context as the core knows it: what is in the KV cache, and where."""

    def __init__(self, ctx: int) -> None:
        self.ctx = ctx
        self.entered: list[Op] = []
        self.snapshot: NDArray[np.uint8] | None = None  # of `entered`, while not in a slot
        self.used = 0  # the step it ran last
        self.reached = 0  # tokens that were in the KV cache once


class Generation:
    """A context's answer in the making: operations to do, then a token to draw, again and again."""

    def __init__(self, engine: Engine, context: Context, run: Run) -> None:
        tokens = [token for _, segment in run.history for token in segment]
        self.context = context
        self.run = run.run
        self.decoding = run.decoding
        self.generated = run.generated
        self.length = len(tokens)
        self.todo: list[Op] = []
        self.digest = run.digest
        self.ended: Why | None = None
        self.error: AiosError | None = None
        self.text = TextStream(run.decoding.stop)
        answer = tokens[self.length - run.generated :]
        held = run.decoding.schema is not None or run.decoding.grammar is not None
        grammar = engine.grammars.start(run.decoding, answer) if held else None
        self.sampler = engine.sampler(run.decoding, tokens, grammar)
        for token in answer:
            self.text.feed(engine.piece(token))

    def next_is(self, how: str) -> bool:
        return self.ended is None and self.todo[0][0] == how


class Batcher:
    """Runs contexts on the engine's slots.

    `certified` is the largest decode batch that is exact. `snapshot_bytes` bounds the KV bytes
    kept in RAM; what does not fit is replayed.
    """

    def __init__(self, engine: Engine, certified: int, snapshot_bytes: int) -> None:
        self.engine = engine
        self.batch = certified or engine.slots
        self.budget = snapshot_bytes
        self.slots: list[Context | None] = [None] * engine.slots
        self.contexts: dict[int, Context] = {}
        self.running: dict[int, Generation] = {}  # by slot
        self.clock = 0
        self.held = 0
        self.saves = self.restores = self.replayed = self.steps = 0
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
        self._rewind(context, slot, generation, plan(run.history))
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
        self._forget(context)
        if context in self.slots:
            slot = self.slots.index(context)
            self.engine.clear(slot)
            self.slots[slot] = None

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
        self.clock += 1
        self._close_ranks()
        self._prefill()
        self._decode()
        self._sweep()
        counters = Counters(self.steps, self.saves, self.restores, self.replayed, self.held)
        done = Step(self.outs, self.halted, counters)
        self.outs, self.halted = [], []
        return done

    def _prefill(self) -> None:
        waiting = [(slot, gen) for slot, gen in self.running.items() if gen.next_is(Prefilled)]
        if waiting:
            # The shortest first, but each step of waiting makes up for a chunk: nobody starves.
            slot, gen = min(waiting, key=lambda at: len(at[1].todo) + at[1].context.used)
            _, pos, tokens = gen.todo[0]
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
        op = gen.todo.pop(0)
        gen.context.entered.append(op)
        gen.context.used = self.clock
        reached = max(gen.context.reached, op[1] + len(op[2]))
        fed, gen.context.reached = reached - gen.context.reached, reached
        if gen.todo:
            self.outs.append(Out(gen.context.ctx, gen.run, fed))
        else:
            self.outs.append(self._draw(gen, index, fed))

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
                del self.running[slot]

    # --- slots and snapshots --------------------------------------------------------------------

    def _slot_for(self, context: Context) -> int:
        """Where it is already, or the lowest slot that does not run; 0 if all do."""
        if context in self.slots:
            return self.slots.index(context)
        return next((slot for slot in range(len(self.slots)) if slot not in self.running), 0)

    def _close_ranks(self) -> None:
        """Move what runs into the slots 0 to n-1."""
        for hole in range(len(self.running)):
            if hole not in self.running:
                gen = self.running.pop(max(self.running))
                self._seat(gen.context, hole)
                self.running[hole] = gen

    def _seat(self, context: Context, slot: int) -> None:
        """Put `context` into `slot`; whoever was there is saved to RAM."""
        if self.slots[slot] is context:
            return
        snapshot = self._take(context)
        if self.slots[slot] is not None:
            self._evict(slot)
        self.slots[slot] = context
        if snapshot is not None:
            self.engine.restore(slot, snapshot)
            self.restores += 1

    def _take(self, context: Context) -> NDArray[np.uint8] | None:
        """The KV bytes of `context`, out of its slot or out of RAM, if there are any."""
        if context not in self.slots:
            snapshot = context.snapshot
            self._forget_snapshot(context)
            return snapshot
        slot = self.slots.index(context)
        self.slots[slot] = None
        snapshot = self.engine.save(slot)
        self.saves += 1
        self.engine.clear(slot)
        return snapshot

    def _evict(self, slot: int) -> None:
        context = self.slots[slot]
        assert context is not None
        context.snapshot = self._take(context)
        assert context.snapshot is not None
        self.held += context.snapshot.nbytes
        self._trim()

    def _trim(self) -> None:
        """Keep within the budget: the least recently used snapshots go, and will be replayed."""
        kept = sorted(
            (c for c in self.contexts.values() if c.snapshot is not None), key=lambda c: c.used
        )
        while self.held > self.budget and kept:
            self._forget(kept.pop(0))

    def _forget(self, context: Context) -> None:
        self._forget_snapshot(context)
        context.entered = []

    def _forget_snapshot(self, context: Context) -> None:
        if context.snapshot is not None:
            self.held -= context.snapshot.nbytes
            context.snapshot = None

    def _rewind(self, context: Context, slot: int, gen: Generation, ops: list[Op]) -> None:
        """Keep of the KV cache what begins `ops`, at most all but the last; the rest is to do."""
        common = 0
        for mine, wanted in zip(context.entered, ops[:-1], strict=False):
            if mine != wanted:
                break
            common += 1
        gen.todo = ops[common:]
        kept = gen.todo[0][1]
        self.replayed += max(0, context.reached - kept)
        self.engine.clear(slot, kept)
        context.entered = ops[:common]


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
