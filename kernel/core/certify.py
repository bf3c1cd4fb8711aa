"""The self-test at model load: up to which batch size decoding is exact, and what that costs.

A format, a backend or a build may change its arithmetic with the number of rows. So each core tests
its own model: slots with sequences of unequal length, one token decoded solo and in batches of
every size, the logits compared bit for bit. First, a sequence longer than any sliding window of the
model's layers is moved from slot to slot; if that changes a bit, no sequence is ever moved.
"""

from __future__ import annotations

import time
from hashlib import blake2b

from .engine import CHUNK_TOKENS, Engine
from .state_layout import BlockSlice


def certify(engine: Engine) -> tuple[int, float | None]:
    """Test an engine, and adapt it: if one row is computed otherwise than two, every solo sequence
    is padded from now on; if a moved sequence goes on otherwise, `row_bytes` becomes 0.

    Returns:
        The largest N such that batches of 1 to N sequences are exact (0: not even a solo one); and
        if N is less than the slots, the time of a full batch cut into batches of N, over the time
        of the same batch uncut.
    """
    lengths = [_fill(engine, 0, _test_length(engine))]
    try:
        exact = not engine.row_bytes or _moves_exactly(engine, lengths[0])
    except ValueError:  # a state has another layout than the first one had
        exact = False
    if not exact:
        engine.row_bytes = 0
        _empty(engine)
        _fill(engine, 0, lengths[0])
    lengths += [_fill(engine, slot, 3 + (slot * 37) % 40) for slot in range(1, engine.slots)]
    found = _certify(engine, lengths)
    if found[0] == 1 < engine.slots:
        before, engine.pad_solo_from = engine.pad_solo_from, 0
        padded = _certify(engine, lengths)
        if padded[0] > 1:
            found = padded
        else:
            engine.pad_solo_from = before
    _empty(engine)
    return found


def _certify(engine: Engine, lengths: list[int]) -> tuple[int, float | None]:
    solo = [_digests(engine, lengths, [slot])[0] for slot in range(engine.slots)]
    certified = 0
    for size in range(1, engine.slots + 1):
        if _digests(engine, lengths, list(range(size))) != solo[:size]:
            return certified, _cost(engine, lengths, certified) if certified else None
        certified = size
    return certified, None


def _test_length(engine: Engine) -> int:
    """Return a length in tokens past the one at which attention splits its work between threads,
    and two chunks past the longest sliding window."""
    return max(engine.pad_solo_from, engine.sliding + 2 * CHUNK_TOKENS if engine.sliding else 0) + 5


def _fill(engine: Engine, slot: int, length: int) -> int:
    """Fill a slot with `length` tokens, or fewer so that two more fit, and return how many."""
    length = max(1, min(length, engine.window - 2))
    engine.clear(slot)
    _prefill(engine, slot, 0, length)
    return length


def _prefill(engine: Engine, slot: int, start: int, end: int) -> list[bytes]:
    """Enter the tokens `start` to `end` of a text; return the digest of each chunk's logits."""
    digests = []
    for pos in range(start, end, CHUNK_TOKENS):
        places = range(pos, min(pos + CHUNK_TOKENS, end))
        engine.prefill(slot, tuple(i * 104729 % engine.n_vocab for i in places), pos)
        digests.append(_digest(engine, len(places) - 1))
    return digests


def _moves_exactly(engine: Engine, length: int) -> bool:
    """Return whether the sequence in slot 0 goes on with the same bits when it changes its slot: by
    its rows or as a whole, amid its prefill or its answer, for an empty slot or in exchange."""
    middle = max(length // CHUNK_TOKENS - 1, 0) * CHUNK_TOKENS
    engine.clear(0, middle)
    expected = _prefill(engine, 0, middle, length)
    expected += [_decode(engine, 0, length), _decode(engine, 0, length + 1)]
    engine.clear(0, middle)
    if middle:
        _move_by_rows(engine, middle)
    found = _prefill(engine, 1, middle, min(middle + CHUNK_TOKENS, length))
    engine.swap(1, 0)
    found += _prefill(engine, 0, middle + CHUNK_TOKENS, length)
    engine.copy(0, 1)
    found.append(_decode(engine, 1, length))
    engine.swap(0, 1)
    found.append(_decode(engine, 0, length + 1))
    engine.clear(0, length)
    engine.clear(1)
    return found == expected


def _move_by_rows(engine: Engine, length: int) -> None:
    """Move slot 0's rows to slot 1, in pages cut one after the other."""
    pages = [(first, CHUNK_TOKENS) for first in range(0, length, CHUNK_TOKENS)]
    last = engine.cut(0, pages[-1:])
    rows = engine.cut(0, pages[:-1]) + last
    engine.clear(0)
    engine.paste(1, [BlockSlice(page, CHUNK_TOKENS, 0, CHUNK_TOKENS) for page in rows])


def _empty(engine: Engine) -> None:
    for slot in range(engine.streams):
        engine.clear(slot)


def _decode(engine: Engine, slot: int, pos: int) -> bytes:
    """Decode one more token, and return the digest of its logits."""
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
