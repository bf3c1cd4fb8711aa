"""A run that has a slot: the operations it has yet to compute, and the tokens drawn behind them."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from aios.syscalls.errors import AiosError, BadGrammar
from aios.syscalls.llm import Decoding, Logprob

from .engine import Engine
from .history import Op
from .protocol import DECODED, EndReason, Halted, Out, Run
from .sampler import Sampler
from .text import TextStream


class Sequence:
    """The core's record of a context: the operations computed for it, and how many are cached.

    `ops` may reach beyond the slot: the keys of what was computed once tell a replay from new
    tokens.
    """

    def __init__(self, ctx: int) -> None:
        self.ctx = ctx
        self.ops: list[Op] = []
        self.keys: list[bytes] = []  # of `ops`
        self.cached = 0  # how many operations its slot holds
        self.last_step = 0  # the step that computed something for it last


class ActiveRun:
    """One Run command in progress: operations to compute, then a token to draw, over and over."""

    def __init__(self, engine: Engine, sequence: Sequence, run: Run, step: int) -> None:
        tokens = [token for _, segment in run.history for token in segment]
        self.engine = engine
        self.sequence = sequence
        self.id = run.run
        self.decoding = run.decoding
        self.generated = run.generated
        self.length = len(tokens)
        self.ops: list[Op] = []  # of the history
        self.keys: list[bytes] = []
        self.pending: list[Op] = []
        self.digest = run.digest
        self.started_step = step
        self.ended: EndReason | None = None
        self.error: AiosError | None = None
        self.text = TextStream(run.decoding.stop)
        answer = tokens[self.length - run.generated :]
        constrained = run.decoding.schema is not None or run.decoding.grammar is not None
        grammar = engine.grammars.start(run.decoding, answer) if constrained else None
        self.sampler = Sampler(engine, run.decoding, tokens, grammar)
        for token in answer:
            self.text.feed(engine.piece(token))

    def next_is(self, how: str) -> bool:
        return self.ended is None and self.pending[0][0] == how

    def draw(self, index: int, fed: int) -> Out:
        """Draw a token from the logits at `index` of the last batch, and decide whether the answer
        ends with it; `fed` tokens were computed for the first time to get there."""
        logits = self.engine.logits(index)
        if self.decoding.digest:
            self.digest = blake2b(logits.tobytes(), key=self.digest, digest_size=32).digest()
        out = Out(self.sequence.ctx, self.id, fed, digest=self.digest)
        try:
            token = self.sampler.draw(index, self.length)
        except BadGrammar as error:
            self.ended, self.error = "failed", error
            return out
        if self.engine.is_end(token) and (self.sampler.grammar or not self.decoding.ignore_eos):
            self.ended = "stop"
            return out
        out.token = token
        out.text = self.text.feed(self.engine.piece(token))
        out.logprob = _logprob(logits, token, self.decoding)
        self.pending.append((DECODED, self.length, (token,)))
        self.length += 1
        self.generated += 1
        self.ended = self._end_reason()
        return out

    def _end_reason(self) -> EndReason | None:
        if self.text.stopped or self.sampler.complete:
            return "stop"
        if self.generated >= self.decoding.max_tokens:
            return "length"
        return "context_full" if self.length >= self.engine.window else None

    def close(self) -> Halted:
        """Free the sampler; the report of how the run ended, with the text held back until now."""
        self.sampler.close()
        assert self.ended is not None
        error = self.error.to_wire() if self.error else None
        return Halted(self.sequence.ctx, self.id, self.ended, self.text.flush(), error)


def _logprob(logits: NDArray[np.float32], token: int, decoding: Decoding) -> Logprob | None:
    """Return the log probability of `token` and the likeliest ones, out of logits [n_vocab]."""
    if decoding.logprobs is None:
        return None
    shifted = logits.astype(np.float64) - logits.max()
    logs = shifted - np.log(np.exp(shifted).sum())
    count = decoding.logprobs
    best = np.argpartition(logs, -count)[-count:] if count else np.array([], np.int64)
    best = best[np.argsort(-logs[best], kind="stable")]
    top = [(int(t), float(logs[t])) for t in best]
    return Logprob(token=token, logprob=float(logs[token]), top=top)
