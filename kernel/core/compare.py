"""Versions of a model beside each other: how quick each is, and how far from the original.

They take turns, so what else the machine does meanwhile strikes both.
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

from .engine import CHUNK
from .llama import LlamaEngine

TOKENS, SPAN = 1024, 512  # of text that is compared; of a context
ROUNDS, PREFILL, STEPS = 9, 2 * CHUNK, 10  # of timing; tokens prefilled; decode steps
READ, WRITTEN = 256, 64  # tokens of a turn: an agent reads what tools say, and writes less
START = 32  # tokens in each context that is decoded

Engines = list[LlamaEngine]  # the original first; all with as many slots, of SPAN tokens at least
Tell = Callable[[str, int, int], None]  # what is done, steps done, steps in all


class Speed(Struct, frozen=True):
    """Tokens/s of one prefill, and of decoding on all slots at once; and what comes of both: turns
    of READ tokens prefilled and WRITTEN decoded, so many a second on each slot."""

    prefill: float
    decode: float
    turns: float

    def over(self, other: Speed) -> Speed:
        return Speed(
            self.prefill / other.prefill, self.decode / other.decode, self.turns / other.turns
        )


class Distance(Struct, frozen=True):
    """From the original's distribution of the next token, over all tokens of the text."""

    kl: float = 0.0  # mean Kullback-Leibler divergence, nats a token
    kl_max: float = 0.0
    same_top: float = 1.0  # share of tokens after which both find the same one likeliest


def text() -> str:
    """English prose, 2,886 tokens of it for the embedded model."""
    return files("aios.examples").joinpath("alice.txt").read_text()


# --- speed ----------------------------------------------------------------------------------------


def race(engines: Engines, certified: list[int], tell: Tell) -> tuple[list[Speed], list[Speed]]:
    """Speed of each, and over the original's: medians over rounds. Decode batches are within what
    is `certified` of each, as a core's are."""
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
    return middle(rounds[1:]), middle(gains[1:])  # the first round warms up


def speed(prefill: float, decode: float, slots: int) -> Speed:
    return Speed(prefill, decode, 1 / (slots * (READ / prefill + WRITTEN / decode)))


def middle(rounds: list[list[Speed]]) -> list[Speed]:
    """Of each engine the median over rounds, of each figure."""
    return [
        Speed(*(median(figures) for figures in zip(*map(astuple, of_one), strict=True)))
        for of_one in zip(*rounds, strict=True)
    ]


def prefill_rate(engine: LlamaEngine, tokens: list[int]) -> float:
    began = time.perf_counter()
    for pos in range(0, PREFILL, CHUNK):
        engine.prefill(0, tuple(tokens[pos : pos + CHUNK]), pos)
    seconds = time.perf_counter() - began
    engine.clear(0)
    return PREFILL / seconds


def decode_rate(engine: LlamaEngine, certified: int, tokens: list[int]) -> float:
    slots = range(engine.slots)
    for slot in slots:
        engine.prefill(slot, tuple(tokens[slot : slot + START]), 0)
    size = certified or engine.slots
    parts = [slots[at : at + size] for at in range(0, engine.slots, size)]
    began = time.perf_counter()
    for step in range(STEPS):
        for part in parts:
            engine.decode([(slot, tokens[step], START + step) for slot in part])
    seconds = time.perf_counter() - began
    for slot in slots:
        engine.clear(slot)
    return STEPS * engine.slots / seconds


# --- distance ----------------------------------------------------------------------------------


def distance(engines: Engines, tell: Tell) -> tuple[list[Distance], list[float]]:
    """How far each is from the original, and the perplexity of each."""
    tokens = engines[0].tokenize(text(), start=True)[:TOKENS]
    kl, same, surprise = [], [], []  # arrays of (engines, tokens of a chunk)
    for start in range(0, len(tokens), SPAN):
        span = tokens[start : start + SPAN]
        for pos in range(0, len(span), CHUNK):
            tell("comparing", start + pos, len(tokens))
            found = [log_probabilities(engine, span[pos : pos + CHUNK], pos) for engine in engines]
            p, follow = found[0], span[pos + 1 : pos + 1 + CHUNK]
            kl.append([(np.exp(p) * (p - q)).sum(1) for q in found])
            same.append([p.argmax(1) == q.argmax(1) for q in found])
            surprise.append([-q[np.arange(len(follow)), follow] for q in found])
        for engine in engines:
            engine.clear(0)
    tell("comparing", 1, 1)
    divergence, agreed, missed = (np.concatenate(all_, axis=1) for all_ in (kl, same, surprise))
    apart = zip(divergence.mean(1), divergence.max(1), agreed.mean(1), strict=True)
    return [Distance(*map(float, each)) for each in apart], np.exp(missed.mean(1)).tolist()


def log_probabilities(engine: LlamaEngine, tokens: list[int], pos: int) -> NDArray[np.float64]:
    """Enter a chunk; of the token that follows each, shape (len(tokens), vocab)."""
    engine.prefill(0, tuple(tokens), pos, every=True)
    logits = np.stack([engine.logits(row) for row in range(len(tokens))]).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return logits
