"""The draw of the next token: llama.cpp's samplers, with a generator seeded for each draw."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as ll
import numpy as np

from aios.syscalls.llm import Sampling

from .engine import Engine
from .grammar import Grammar

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def _mix_seed(seed: int, position: int) -> int:
    """Hash (seed, position) with SplitMix64, cut to the 32 bits of llama.cpp's seeds."""
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + position + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) & 0xFFFFFFFE  # never LLAMA_DEFAULT_SEED, which means random


class Sampler:
    """Draws tokens with llama.cpp's samplers. Its state is rebuilt from the `past` tokens.

    The generator is seeded from (seed, position) for each draw, so a context that moves between
    slots, cores and machines has no generator to carry along.
    """

    def __init__(
        self, engine: Engine, params: Sampling, past: list[int], grammar: Grammar | None
    ) -> None:
        self.engine = engine
        self.params = params
        self.grammar = grammar
        self.chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        add = self._add
        penalties = params.repeat_penalty, params.frequency_penalty, params.presence_penalty
        if penalties != (1.0, 0.0, 0.0) and params.penalty_last:
            last = params.penalty_last
            add(ll.llama_sampler_init_penalties(engine.n_vocab, last, *penalties))
            for token in past[-last:]:
                ll.llama_sampler_accept(self.chain, token)
        if params.temperature == 0:
            add(ll.llama_sampler_init_greedy())
            return
        if params.top_k:
            add(ll.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            add(ll.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            add(ll.llama_sampler_init_min_p(params.min_p, 1))
        add(ll.llama_sampler_init_temp(params.temperature))

    def _add(self, sampler: Any) -> None:
        ll.llama_sampler_chain_add(self.chain, sampler)

    def draw(self, index: int, position: int) -> int:
        """Draw a token from the logits at `index` of the last batch.

        Raises:
            BadGrammar: the state of the answer's grammar has outgrown its limits.
        """
        if self.params.temperature == 0:
            return self._draw(index)
        last = ll.llama_sampler_chain_n(self.chain)
        self._add(ll.llama_sampler_init_dist(_mix_seed(self.params.seed, position)))
        try:
            return self._draw(index)
        finally:
            ll.llama_sampler_free(ll.llama_sampler_chain_remove(self.chain, last))

    def _draw(self, index: int) -> int:
        logits = self.engine.logits(index)
        if self.grammar is None:
            found = np.zeros(logits.size, CANDIDATE)
            found["id"], found["logit"] = np.arange(logits.size), logits
        else:
            ids = self.grammar.allowed()
            found = np.zeros(ids.size, CANDIDATE)
            found["id"], found["logit"] = ids, logits[ids]
        data = found.ctypes.data_as(ll.llama_token_data_p)
        candidates = ll.llama_token_data_array(data, found.size, -1, False)
        ll.llama_sampler_apply(self.chain, ctypes.byref(candidates))
        token = int(candidates.data[candidates.selected].id)
        ll.llama_sampler_accept(self.chain, token)
        if self.grammar is not None:
            self.grammar.accept(token)
        return token

    @property
    def complete(self) -> bool:
        """True if there is a grammar, and it lets nothing follow."""
        return self.grammar is not None and self.grammar.complete

    def close(self) -> None:
        ll.llama_sampler_free(self.chain)
