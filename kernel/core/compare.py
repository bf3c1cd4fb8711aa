"""Variants of a model beside each other: the speed of each, and its divergence from the original.

They take turns, so other load on the machine slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from statistics import median

import numpy as np
from msgspec import Struct
from msgspec.structs import astuple
from numpy.typing import NDArray

from .engine import CHUNK_TOKENS
from .llama import LlamaEngine

TEXT_TOKENS, SPAN_TOKENS = 1024, 512  # compared; entered into one context
ROUNDS, PREFILL_TOKENS, DECODE_STEPS = 9, 2 * CHUNK_TOKENS, 10  # of timing
# A turn: an agent reads the results of tools, and writes less.
READ_TOKENS, WRITTEN_TOKENS = 256, 64
START_TOKENS = 32  # in each context that is decoded

Engines = list[LlamaEngine]  # the original first; all with as many slots, of SPAN_TOKENS at least
Tell = Callable[[str, int, int], None]  # (activity, steps done, steps in all)


class Speed(Struct, frozen=True):
    """The speed of a variant: tokens/s of one prefill, tokens/s of decoding on all slots at once,
    and turns/s on each slot, of READ_TOKENS prefilled and WRITTEN_TOKENS decoded."""

    prefill: float
    decode: float
    turns: float

    def over(self, other: Speed) -> Speed:
        return Speed(
            self.prefill / other.prefill, self.decode / other.decode, self.turns / other.turns
        )


class Divergence(Struct, frozen=True):
    """A variant's distributions of the next token against the original's, over a text."""

    kl: float = 0.0  # mean Kullback-Leibler divergence, nats a token
    kl_max: float = 0.0
    same_top: float = 1.0  # share of tokens behind which both find the same one likeliest


def text() -> str:
    """Return English prose, 2,886 tokens of it for the embedded model."""
    return files("aios.examples").joinpath("alice.txt").read_text()


# --- speed ----------------------------------------------------------------------------------------


def race(engines: Engines, certified: list[int], tell: Tell) -> tuple[list[Speed], list[Speed]]:
    """Return the speed of each engine, and its gain over the original's: medians over rounds. As in
    a core, decode batches have at most the `certified` size of the engine."""
    tokens = engines[0].tokenize(text(), start=True)
    rounds: list[list[Speed]] = []
    for number in range(ROUNDS + 1):
        tell("timing", number, ROUNDS + 1)
        prefill = [prefill_rate(engine, tokens) for engine in engines]
        decode = [decode_rate(*each, tokens) for each in zip(engines, certified, strict=True)]
        slots = engines[0].slots
        rounds.append([speed(*rates, slots) for rates in zip(prefill, decode, strict=True)])
    tell("timing", 1, 1)
    gains = [[each.over(speeds[0]) for each in speeds] for speeds in rounds]
    return medians(rounds[1:]), medians(gains[1:])  # the first round warms up


def speed(prefill: float, decode: float, slots: int) -> Speed:
    return Speed(prefill, decode, 1 / (slots * (READ_TOKENS / prefill + WRITTEN_TOKENS / decode)))


def medians(rounds: list[list[Speed]]) -> list[Speed]:
    """Return, for each engine, the median of each figure over rounds."""
    return [
        Speed(*(median(figures) for figures in zip(*map(astuple, of_one), strict=True)))
        for of_one in zip(*rounds, strict=True)
    ]


def prefill_rate(engine: LlamaEngine, tokens: list[int]) -> float:
    began = time.perf_counter()
    for pos in range(0, PREFILL_TOKENS, CHUNK_TOKENS):
        engine.prefill(0, tuple(tokens[pos : pos + CHUNK_TOKENS]), pos)
    seconds = time.perf_counter() - began
    engine.clear(0)
    return PREFILL_TOKENS / seconds


def decode_rate(engine: LlamaEngine, certified: int, tokens: list[int]) -> float:
    slots = range(engine.slots)
    for slot in slots:
        engine.prefill(slot, tuple(tokens[slot : slot + START_TOKENS]), 0)
    size = certified or engine.slots
    parts = [slots[at : at + size] for at in range(0, engine.slots, size)]
    began = time.perf_counter()
    for step in range(DECODE_STEPS):
        for part in parts:
            engine.decode([(slot, tokens[step], START_TOKENS + step) for slot in part])
    seconds = time.perf_counter() - began
    for slot in slots:
        engine.clear(slot)
    return DECODE_STEPS * engine.slots / seconds


# --- divergence --------------------------------------------------------------------------------


def measure_divergence(engines: Engines, tell: Tell) -> tuple[list[Divergence], list[float]]:
    """Return the divergence of each engine from the original, and its perplexity."""
    tokens = engines[0].tokenize(text(), start=True)[:TEXT_TOKENS]
    kl, same, surprise = [], [], []  # arrays of (engines, tokens of a chunk)
    for start in range(0, len(tokens), SPAN_TOKENS):
        span = tokens[start : start + SPAN_TOKENS]
        for pos in range(0, len(span), CHUNK_TOKENS):
            tell("comparing", start + pos, len(tokens))
            found = [
                log_probabilities(engine, span[pos : pos + CHUNK_TOKENS], pos) for engine in engines
            ]
            p, follow = found[0], span[pos + 1 : pos + 1 + CHUNK_TOKENS]
            kl.append([(np.exp(p) * (p - q)).sum(1) for q in found])
            same.append([p.argmax(1) == q.argmax(1) for q in found])
            surprise.append([-q[np.arange(len(follow)), follow] for q in found])
        for engine in engines:
            engine.clear(0)
    tell("comparing", 1, 1)
    kl_each, agreed, missed = (np.concatenate(all_, axis=1) for all_ in (kl, same, surprise))
    figures = zip(kl_each.mean(1), kl_each.max(1), agreed.mean(1), strict=True)
    return [Divergence(*map(float, each)) for each in figures], np.exp(missed.mean(1)).tolist()


def log_probabilities(engine: LlamaEngine, tokens: list[int], pos: int) -> NDArray[np.float64]:
    """Enter a chunk, and return the log probabilities of the token behind each of its tokens, shape
    (len(tokens), n_vocab)."""
    engine.prefill(0, tuple(tokens), pos, every=True)
    logits = np.stack([engine.logits(row) for row in range(len(tokens))]).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return logits
