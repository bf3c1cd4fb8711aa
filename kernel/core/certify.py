"""The self-test at model load: up to which batch size is decoding exact, and what does that cost.

A format, a backend or a build may change its arithmetic with the number of rows. So each core
measures on its own model: slots with contexts of unequal length, one token decoded alone and in
batches of every size, the logits compared bit for bit.
"""

from __future__ import annotations

import time
from hashlib import blake2b

from .llama import ALONE, CHUNK, Engine


def certify(engine: Engine) -> tuple[int, float | None]:
    """The largest N so that batches of 1 to N sequences are exact (0: not even one alone), and
    the time of a full batch cut into batches of N over the same batch uncut, if N is smaller.

    Where one row is computed otherwise than two, no lone sequence is left without company.
    """
    found = _certify(engine)
    if found[0] == 1 < engine.slots:
        engine.alone = 0
        with_company = _certify(engine)
        if with_company[0] > 1:
            return with_company
        engine.alone = ALONE
    return found


def _certify(engine: Engine) -> tuple[int, float | None]:
    lengths = _fill(engine)
    alone = [_digests(engine, lengths, [slot])[0] for slot in range(engine.slots)]
    certified = 0
    for size in range(1, engine.slots + 1):
        if _digests(engine, lengths, list(range(size))) != alone[:size]:
            cost = _cost(engine, lengths, certified) if certified else None
            _empty(engine)
            return certified, cost
        certified = size
    _empty(engine)
    return certified, None


def _fill(engine: Engine) -> list[int]:
    """Short contexts of unequal length; the first crosses the length where attention splits."""
    lengths = []
    for slot in range(engine.slots):
        length = ALONE + 5 if slot == 0 else 3 + (slot * 37) % 40
        length = min(length, engine.window - 1)
        tokens = [(slot * 7919 + i * 104729) % engine.n_vocab for i in range(length)]
        for pos in range(0, length, CHUNK):
            engine.prefill(slot, tuple(tokens[pos : min(pos + CHUNK, length)]), pos)
        lengths.append(length)
    return lengths


def _empty(engine: Engine) -> None:
    for slot in range(engine.slots):
        engine.clear(slot)


def _digests(engine: Engine, lengths: list[int], slots: list[int]) -> list[bytes]:
    engine.decode([(slot, slot + 1, lengths[slot]) for slot in slots])
    found = [
        blake2b(engine.logits(engine.index[row]).tobytes(), digest_size=16).digest()
        for row in range(len(slots))
    ]
    for slot in slots:
        engine.clear(slot, lengths[slot])
    return found


def _cost(engine: Engine, lengths: list[int], certified: int) -> float:
    slots = list(range(engine.slots))
    parts = [slots[at : at + certified] for at in range(0, engine.slots, certified)]
    ratios = []
    for _ in range(3):
        begin = time.perf_counter()
        for part in parts:
            _digests(engine, lengths, part)
        middle = time.perf_counter()
        _digests(engine, lengths, slots)
        ratios.append((middle - begin) / (time.perf_counter() - middle))
    return sorted(ratios)[1]
