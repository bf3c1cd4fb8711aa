"""The interface of engines: llama.cpp's, and the deterministic one of the tests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from batcher_harness import PLENTY, CheckedBatcher, Job, at_random, finish, run_solo, text
from deterministic_engine import DeterministicEngine
from models import tiny_model

from aios.kernel.config import embedded_model
from aios.kernel.core.certify import certify
from aios.kernel.core.engine import CHUNK_TOKENS, Engine
from aios.kernel.core.llama import LlamaEngine
from aios.kernel.core.state_layout import BlockSlice
from aios.syscalls.errors import BadInput, Internal
from aios.syscalls.llm import Decoding

SLOTS, WINDOW = 4, 320


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaEngine]:
    path = tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    engine = LlamaEngine(path, slots=SLOTS, window=WINDOW, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def embedded() -> Iterator[LlamaEngine]:
    engine = LlamaEngine(embedded_model(), slots=SLOTS, window=WINDOW, threads=1)
    yield engine
    engine.close()


@pytest.fixture(params=["deterministic", "tiny"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn; a test leaves the slots as it likes."""
    if request.param == "deterministic":
        yield DeterministicEngine(slots=SLOTS, window=WINDOW)
        return
    engine: LlamaEngine = request.getfixturevalue(request.param)
    yield engine
    for slot in range(engine.streams):
        engine.clear(slot)


numeric = pytest.mark.parametrize("engine", ["deterministic", "tiny", "embedded"], indirect=True)


def enter(engine: Engine, slot: int, length: int, start: int = 0) -> bytes:
    """Have a slot read `length` tokens, and return the logits behind the last."""
    engine.clear(slot)
    for pos in range(0, length, CHUNK_TOKENS):
        chunk = text(engine, min(CHUNK_TOKENS, length - pos), start + pos)
        engine.prefill(slot, tuple(chunk), pos)
    return engine.logits(len(chunk) - 1).tobytes()


def behind(engine: Engine, *rows: tuple[int, int]) -> list[bytes]:
    """Decode (slot, token) pairs, and return the logits behind each."""
    engine.decode([(slot, token, engine.length(slot)) for slot, token in rows])
    return [engine.logits(index).tobytes() for index in engine.index]


# --- computing ----------------------------------------------------------------------------------


def test_sizes(engine: Engine) -> None:
    assert (engine.slots, engine.window) == (SLOTS, WINDOW)
    assert engine.streams >= SLOTS
    assert engine.row_bytes > 0
    assert engine.sliding == 0
    enter(engine, 0, 5)
    logits = engine.logits(4)
    assert logits.shape == (engine.n_vocab,)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert len(np.unique(logits)) > engine.n_vocab // 2


def test_logits_depend_on_the_tokens_before_and_on_nothing_else(engine: Engine) -> None:
    """They do not depend on the slot, other slots, former contents, or the rest of the batch."""
    lengths = [70, 3, WINDOW - 10, CHUNK_TOKENS]
    first = [enter(engine, 0, length, 9 * at) for at, length in enumerate(lengths)]
    solo = []
    for at, length in enumerate(lengths):
        enter(engine, 0, length, 9 * at)
        solo.append([*behind(engine, (0, 7)), *behind(engine, (0, 8))])
    assert len({*first, *(each for pair in solo for each in pair)}) == 3 * len(lengths)
    for at in (2, 0, 3, 1):
        assert enter(engine, at, lengths[at], 9 * at) == first[at]
    batches = [behind(engine, *((slot, 7) for slot in (3, 0, 2, 1)))]
    batches += [behind(engine, (2, 8)), behind(engine, (3, 8), (0, 8)), behind(engine, (1, 8))]
    assert batches == [
        [solo[3][0], solo[0][0], solo[2][0], solo[1][0]],
        [solo[2][1]],
        [solo[3][1], solo[0][1]],
        [solo[1][1]],
    ]


def test_each_token_before_counts(engine: Engine) -> None:
    tokens = text(engine, 20)
    found = set()
    for at in range(20):
        other = (*tokens[:at], tokens[at] ^ 1, *tokens[at + 1 :])
        engine.clear(0)
        engine.prefill(0, other, 0)
        found.add(engine.logits(19).tobytes())
    assert len(found) == 20


def test_what_was_cleared_leaves_no_trace(engine: Engine) -> None:
    enter(engine, 1, 100)
    expected = behind(engine, (1, 5))
    enter(engine, 1, 100)
    behind(engine, (1, 9))
    behind(engine, (1, 9))
    engine.prefill(1, tuple(text(engine, 26, 50)), 102)
    assert engine.length(1) == 128
    engine.clear(1, 100)
    assert engine.length(1) == 100
    assert behind(engine, (1, 5)) == expected
    engine.clear(1, CHUNK_TOKENS)
    engine.prefill(1, tuple(text(engine, 36, CHUNK_TOKENS)), CHUNK_TOKENS)
    assert behind(engine, (1, 5)) == expected
    engine.clear(1)
    engine.clear(1)
    assert engine.length(1) == 0


def test_a_full_slot_takes_no_more(engine: Engine) -> None:
    """A slot may have more room than the window, for padding, but not without end."""
    enter(engine, 0, WINDOW)
    enter(engine, 1, 10)
    with pytest.raises(Internal):
        for pos in range(WINDOW, WINDOW + 1000):
            engine.decode([(1, 3, 10), (0, 3, pos)])
            engine.clear(1, 10)
    full = engine.length(0)
    assert full >= WINDOW
    with pytest.raises(Internal):
        engine.prefill(0, tuple(text(engine, CHUNK_TOKENS)), full)
    assert engine.length(0) == full
    expected = enter(engine, 2, 30)
    assert enter(engine, 0, 30) == expected


def test_tokens_enter_at_the_end_of_a_slot_alone(engine: Engine) -> None:
    enter(engine, 0, 10)
    for pos in (0, 9, 11):
        with pytest.raises(Internal):
            engine.decode([(0, 1, pos)])
        with pytest.raises(Internal):
            engine.prefill(0, (1, 2), pos)
    assert engine.length(0) == 10


# --- what slots hold ----------------------------------------------------------------------------


@numeric
def test_a_context_that_moves_goes_on_the_same(engine: Engine) -> None:
    enter(engine, 0, 150)
    expected = [*behind(engine, (0, 7)), *behind(engine, (0, 8))]
    enter(engine, 3, 40, start=500)
    other = behind(engine, (3, 1))[0]
    enter(engine, 3, 40, start=500)
    enter(engine, 0, 150)
    engine.copy(0, 1)
    assert [engine.length(slot) for slot in range(4)] == [150, 150, 0, 40]
    assert behind(engine, (1, 7)) == expected[:1]
    engine.swap(1, 2)  # into an empty one
    assert [engine.length(slot) for slot in range(4)] == [150, 0, 151, 40]
    engine.swap(1, 2)  # and out of it
    engine.swap(3, 1)
    assert [engine.length(slot) for slot in range(4)] == [150, 40, 0, 151]
    assert behind(engine, (3, 8), (1, 1)) == [expected[1], other]
    assert behind(engine, (0, 7)) == expected[:1]
    engine.copy(3, 0)  # over what was there
    engine.clear(0, 151)
    assert behind(engine, (0, 8)) == expected[1:]


@numeric
def test_rows_that_were_cut_and_pasted_go_on_the_same(engine: Engine) -> None:
    enter(engine, 0, 150)
    expected = behind(engine, (0, 7))
    engine.clear(0, 150)
    spans = [(0, CHUNK_TOKENS), (CHUNK_TOKENS, CHUNK_TOKENS), (2 * CHUNK_TOKENS, 22), (100, 50)]
    pages = engine.cut(0, spans)
    assert [page.nbytes for page in pages] == [count * engine.row_bytes for _, count in spans]
    assert engine.length(0) == 150
    assert behind(engine, (0, 7)) == expected
    enter(engine, 0, 150, start=7)  # they are copies
    assert not any(map(np.array_equal, pages, engine.cut(0, spans)))
    enter(engine, 2, 9, start=300)
    one, two, rest, late = pages
    begins = [BlockSlice(one, CHUNK_TOKENS, 0, CHUNK_TOKENS)]
    for parts in (
        [*begins, BlockSlice(two, CHUNK_TOKENS, 0, CHUNK_TOKENS), BlockSlice(rest, 22, 0, 22)],
        [*begins, BlockSlice(two, CHUNK_TOKENS, 0, 36), BlockSlice(late, 50, 0, 50)],
        [
            *begins,
            BlockSlice(two, CHUNK_TOKENS, 0, 10),
            BlockSlice(two, CHUNK_TOKENS, 10, 30),
            BlockSlice(late, 50, 4, 46),
        ],
    ):
        engine.paste(2, parts)
        assert engine.length(2) == 150
        again = engine.cut(2, spans)
        assert [page.tobytes() for page in again] == [page.tobytes() for page in pages]
        assert behind(engine, (2, 7)) == expected


def test_a_part_of_the_rows_goes_on_as_if_there_had_been_no_more(engine: Engine) -> None:
    enter(engine, 0, 150)
    pages = engine.cut(0, [(0, CHUNK_TOKENS), (CHUNK_TOKENS, CHUNK_TOKENS)])
    engine.clear(0, 100)
    expected = behind(engine, (0, 7))
    engine.paste(
        1,
        [
            BlockSlice(pages[0], CHUNK_TOKENS, 0, CHUNK_TOKENS),
            BlockSlice(pages[1], CHUNK_TOKENS, 0, 36),
        ],
    )
    assert behind(engine, (1, 7)) == expected


def test_rows_that_are_not_there_are_not_cut(engine: Engine) -> None:
    enter(engine, 0, 50)
    for spans in ([(0, 51)], [(0, 10), (45, 6)], [(60, 2)]):
        with pytest.raises(ValueError):
            engine.cut(0, spans)
    with pytest.raises(ValueError):
        engine.cut(1, [(0, 1)])
    assert engine.cut(0, [(49, 1)])[0].size == engine.row_bytes


def test_rows_of_another_size_are_not_pasted(engine: Engine) -> None:
    enter(engine, 0, 10)
    (rows,) = engine.cut(0, [(0, 10)])
    longer = np.concatenate([rows, rows[:1]])
    for part in (
        BlockSlice(rows[:-1], 10, 0, 10), BlockSlice(longer, 10, 0, 10), BlockSlice(rows, 9, 0, 9),
        BlockSlice(rows, 11, 0, 11), BlockSlice(rows, 10, 1, 10),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            engine.paste(1, [part])
    assert engine.length(1) == 0


def test_more_rows_than_there_is_room_for_are_not_pasted(engine: Engine) -> None:
    enter(engine, 0, WINDOW)
    (rows,) = engine.cut(0, [(0, WINDOW)])
    twice = [BlockSlice(rows, WINDOW, 0, WINDOW)] * 2
    with pytest.raises(Internal):
        engine.paste(1, twice)
    expected = enter(engine, 2, 30)
    assert enter(engine, 1, 30) == expected


# --- vocabulary ---------------------------------------------------------------------------------


def test_tokens_have_bytes_and_some_end_an_answer(engine: Engine) -> None:
    pieces = [engine.piece(token) for token in range(engine.n_vocab)]
    ends = [token for token in range(engine.n_vocab) if engine.is_end(token)]
    assert 0 < len(ends) < engine.n_vocab
    assert {pieces[token] for token in ends} == {b""}
    assert {bytes([byte]) for byte in range(256)} <= {*pieces}
    with pytest.raises(BadInput, match="vocabulary"):
        engine.piece(engine.n_vocab)


def test_an_answer_can_be_held_to_a_schema(engine: Engine) -> None:
    schema = {"type": "array", "items": {"enum": [1, 22]}, "minItems": 1, "maxItems": 1}
    batcher = CheckedBatcher(engine, SLOTS, PLENTY)
    job = Job(1, text(engine, 9), Decoding(max_tokens=200, schema=schema))
    finish(batcher, job)
    assert job.why == "stop"
    assert json.loads(job.text) in ([1], [22])


def test_a_fingerprint_names_the_batch(engine: Engine) -> None:
    prints = [engine.fingerprint(batch) for batch in (0, 1, 2, 2)]
    assert {len(each) for each in prints} == {16}
    assert len({*prints}) == 3


# --- all together -------------------------------------------------------------------------------


def test_it_is_certified(engine: Engine) -> None:
    enter(engine, 1, 20)
    assert certify(engine) == (SLOTS, None)
    assert engine.row_bytes > 0
    assert [engine.length(slot) for slot in range(engine.streams)] == [0] * engine.streams


@pytest.mark.parametrize("ram", [PLENTY, 200, 0], ids=["plenty", "little", "none"])
def test_no_schedule_can_be_told_from_the_output(engine: Engine, ram: int) -> None:
    lengths = [253, CHUNK_TOKENS, 5, 70, 1, CHUNK_TOKENS + 1]
    decodings = [
        Decoding(max_tokens=12, ignore_eos=True, digest=True, temperature=heat, seed=4)
        for heat in (0.0, 0.9)
    ]
    jobs = [Job(at, text(engine, n, at), decodings[at % 2]) for at, n in enumerate(lengths, 1)]
    solo = [run_solo(engine, job.prompt, job.decoding) for job in jobs]
    batcher = CheckedBatcher(engine, SLOTS, ram if ram == PLENTY else ram * engine.row_bytes)
    at_random(batcher, jobs, seed=5)
    assert [job.result for job in jobs] == [job.result for job in solo]
    assert batcher.prefix_cache.check() == []
    assert (batcher.replayed > 0) == (ram < PLENTY)


# --- what the deterministic engine alone can tell -----------------------------------------------


def test_rows_that_were_changed_or_mixed_up_are_refused() -> None:
    engine = DeterministicEngine()
    enter(engine, 0, 150)
    enter(engine, 1, 150, start=1)
    one, two = engine.cut(0, [(0, CHUNK_TOKENS), (CHUNK_TOKENS, CHUNK_TOKENS)])
    (other,) = engine.cut(1, [(CHUNK_TOKENS, CHUNK_TOKENS)])
    for byte in (0, 5, 9, 13, 63, CHUNK_TOKENS * engine.row_bytes - 1):
        changed = two.copy()
        changed[byte] ^= 1
        with pytest.raises(AssertionError, match="follows another"):
            engine.paste(
                2,
                [
                    BlockSlice(one, CHUNK_TOKENS, 0, CHUNK_TOKENS),
                    BlockSlice(changed, CHUNK_TOKENS, 0, CHUNK_TOKENS),
                ],
            )
    for parts in ([two], [two, one], [one, one], [one, other]):
        with pytest.raises(AssertionError, match="follows another"):
            engine.paste(2, [BlockSlice(part, CHUNK_TOKENS, 0, CHUNK_TOKENS) for part in parts])
    for part in (BlockSlice(two, CHUNK_TOKENS, 1, 10), BlockSlice(one, CHUNK_TOKENS, 0, 10)):
        with pytest.raises(AssertionError, match="follows another"):
            engine.paste(2, [BlockSlice(one, CHUNK_TOKENS, 0, 63), part])


def test_rows_differ_by_how_their_tokens_were_entered() -> None:
    engine = DeterministicEngine()
    tokens = tuple(text(engine, 8))
    engine.prefill(0, tokens, 0)
    engine.prefill(1, tokens[:7], 0)
    engine.decode([(1, tokens[7], 7)])
    engine.prefill(2, tokens[:7], 0)
    engine.prefill(2, tokens[7:], 7)
    assert len({engine.cut(slot, [(7, 1)])[0].tobytes() for slot in range(3)}) == 3


def test_logits_are_not_to_be_read_behind_the_next_batch() -> None:
    engine = DeterministicEngine()
    enter(engine, 0, 5)
    logits = engine.logits(4)
    engine.decode([(0, 1, 5)])
    assert np.isnan(logits).all()
