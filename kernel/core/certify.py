"""The self-test at model load: up to which batch size is decoding exact, and what does that cost.

A format, a backend or a build may change its arithmetic with the number of rows. So each core
measures on its own model: slots with contexts of unequal length, one token decoded alone and in
batches of every size, the logits compared bit for bit. Before, one context that is longer than any
window of the model's layers is moved from slot to slot as contexts are; where that changes a bit,
none is moved.
"""

from __future__ import annotations

import time
from hashlib import blake2b

from .engine import CHUNK, Engine
from .state import BlockSlice


def certify(engine: Engine) -> tuple[int, float | None]:
    """The largest N so that batches of 1 to N sequences are exact (0: not even one alone), and
    the time of a full batch cut into batches of N over the same batch uncut, if N is smaller.

    Where one row is computed otherwise than two, no lone sequence is left without company; where a
    sequence that is moved goes on otherwise, the engine's `row_bytes` are 0 from then on.
    """
    lengths = [_fill(engine, 0, _long(engine))]
    try:
        exactly = not engine.row_bytes or _moves_exactly(engine, lengths[0])
    except ValueError:  # its states are of another form than the first one was
        exactly = False
    if not exactly:
        engine.row_bytes = 0
        _empty(engine)
        _fill(engine, 0, lengths[0])
    lengths += [_fill(engine, slot, 3 + (slot * 37) % 40) for slot in range(1, engine.slots)]
    found = _certify(engine, lengths)
    if found[0] == 1 < engine.slots:
        alone, engine.alone = engine.alone, 0
        with_company = _certify(engine, lengths)
        if with_company[0] > 1:
            found = with_company
        else:
            engine.alone = alone
    _empty(engine)
    return found


def _certify(engine: Engine, lengths: list[int]) -> tuple[int, float | None]:
    alone = [_digests(engine, lengths, [slot])[0] for slot in range(engine.slots)]
    certified = 0
    for size in range(1, engine.slots + 1):
        if _digests(engine, lengths, list(range(size))) != alone[:size]:
            return certified, _cost(engine, lengths, certified) if certified else None
        certified = size
    return certified, None


def _long(engine: Engine) -> int:
    """The tokens of a context that crosses the length where attention splits, and is two chunks
    beyond the window of a layer that has one."""
    return max(engine.alone, engine.sliding + 2 * CHUNK if engine.sliding else 0) + 5


def _fill(engine: Engine, slot: int, length: int) -> int:
    """Have a slot hold `length` tokens, or as many as there is room for with two more."""
    length = max(1, min(length, engine.window - 2))
    engine.clear(slot)
    _prefill(engine, slot, 0, length)
    return length


def _prefill(engine: Engine, slot: int, start: int, end: int) -> list[bytes]:
    """Enter the tokens from `start` to `end` of a text; the digest of each chunk's logits."""
    digests = []
    for pos in range(start, end, CHUNK):
        places = range(pos, min(pos + CHUNK, end))
        engine.prefill(slot, tuple(i * 104729 % engine.n_vocab for i in places), pos)
        digests.append(_digest(engine, len(places) - 1))
    return digests


def _moves_exactly(engine: Engine, length: int) -> bool:
    """Whether the context in slot 0 goes on with the same bits when it changes its slot: by its
    rows or as a whole, in the midst of its prefill or of its answer, for an empty slot or in
    exchange."""
    middle = max(length // CHUNK - 1, 0) * CHUNK
    engine.clear(0, middle)
    expected = _prefill(engine, 0, middle, length)
    expected += [_decode(engine, 0, length), _decode(engine, 0, length + 1)]
    engine.clear(0, middle)
    if middle:
        _move_by_rows(engine, middle)
    found = _prefill(engine, 1, middle, min(middle + CHUNK, length))
    engine.swap(1, 0)
    found += _prefill(engine, 0, middle + CHUNK, length)
    engine.copy(0, 1)
    found.append(_decode(engine, 1, length))
    engine.swap(0, 1)
    found.append(_decode(engine, 0, length + 1))
    engine.clear(0, length)
    engine.clear(1)
    return found == expected


def _move_by_rows(engine: Engine, length: int) -> None:
    """From slot 0 to 1, in pages that are cut one after the other."""
    pages = [(first, CHUNK) for first in range(0, length, CHUNK)]
    last = engine.cut(0, pages[-1:])
    rows = engine.cut(0, pages[:-1]) + last
    engine.clear(0)
    engine.paste(1, [BlockSlice(page, CHUNK, 0, CHUNK) for page in rows])


def _empty(engine: Engine) -> None:
    for slot in range(engine.streams):
        engine.clear(slot)


def _decode(engine: Engine, slot: int, pos: int) -> bytes:
    """The digest of the logits behind one more token."""
    engine.decode([(slot, 1, pos)])
    return _digest(engine, engine.index[0])


def _digest(engine: Engine, index: int) -> bytes:
    return blake2b(engine.logits(index).tobytes(), digest_size=16).digest()


def _digests(engine: Engine, lengths: list[int], slots: list[int]) -> list[bytes]:
    engine.decode([(slot, slot + 1, lengths[slot]) for slot in slots])
    found = [_digest(engine, engine.index[row]) for row in range(len(slots))]
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
