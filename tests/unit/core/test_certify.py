"""The self-test at model load: what it certifies holds, and what it does not certify breaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from batcher_harness import PLENTY, CheckedBatcher, Job, finish, report, run_solo, text
from deterministic_engine import DeterministicEngine
from models import tiny_model
from numpy.typing import NDArray

from aios.kernel.config import embedded_model
from aios.kernel.core.certify import certify
from aios.kernel.core.engine import CHUNK_TOKENS, Engine
from aios.kernel.core.gguf import requantize
from aios.kernel.core.llama import PAD_FROM_TOKENS, LlamaEngine
from aios.syscalls.llm import Decoding

SLOTS, WINDOW = 6, 320


class Certified(NamedTuple):
    engine: Engine
    size: int
    cost: float | None


def certified(**options: Any) -> Certified:
    """A deterministic engine after its self-test."""
    engine = DeterministicEngine(slots=SLOTS, window=WINDOW, **options)
    return Certified(engine, *certify(engine))


def load(path: Path) -> LlamaEngine:
    return LlamaEngine(path, slots=SLOTS, window=WINDOW, threads=2)


@pytest.fixture(scope="module")
def formats_that_break(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certified]:
    """A format whose kernels compute several rows in another way than few; which one does, and from
    how many on, is the processor's and the build's."""
    path = tmp_path_factory.mktemp("model") / "requantized.gguf"
    for name in ("q4_k_m", "q5_k_m"):
        requantize(embedded_model(), path, name, 2)
        engine = load(path)
        path.unlink()  # mapped, as long as it is loaded
        found = Certified(engine, *certify(engine))
        if found.size < SLOTS:
            yield found
            engine.close()
            return
        engine.close()
    pytest.fail("on this machine each of the formats is exact at every batch size")


@pytest.fixture(params=["deterministic", "requantized"])
def breaks_early(request: pytest.FixtureRequest) -> Certified:
    if request.param == "deterministic":
        return certified(exact_batch=3)
    found: Certified = request.getfixturevalue("formats_that_break")
    return found


@pytest.fixture(params=["deterministic", "bf16"])
def needs_padding(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Certified]:
    """A format of which llama.cpp computes one row with other kernels than several: on processors
    with AVX2 and on those with AVX-512, at least."""
    if request.param == "deterministic":
        yield certified(solo_from=0)
        return
    engine = load(tiny_model(tmp_path / "bf16.gguf", matrices="BF16"))
    yield Certified(engine, *certify(engine))
    engine.close()


def jobs_of(engine: Engine, lengths: Iterable[int], max_tokens: int) -> list[Job]:
    decoding = Decoding(max_tokens=max_tokens, ignore_eos=True, digest=True)
    return [Job(i, text(engine, length, i), decoding) for i, length in enumerate(lengths)]


def lengths_of(engine: Engine) -> list[int]:
    return [engine.length(slot) for slot in range(engine.streams)]


# --- exactness ----------------------------------------------------------------------------------


def test_the_embedded_model_is_exact_on_all_slots() -> None:
    engine = load(embedded_model())
    assert certify(engine) == (SLOTS, None)
    assert engine.row_bytes > 0
    assert engine.pad_solo_from == PAD_FROM_TOKENS
    assert lengths_of(engine) == [0] * SLOTS
    engine.close()


def test_a_format_that_breaks_early_is_found_and_its_cost_measured(
    breaks_early: Certified,
) -> None:
    assert 1 <= breaks_early.size < SLOTS
    assert breaks_early.cost is not None
    assert breaks_early.cost > 0
    assert lengths_of(breaks_early.engine) == [0] * SLOTS


@pytest.mark.parametrize("size", range(2, SLOTS + 1))
def test_the_largest_size_is_found(size: int) -> None:
    engine, found, cost = certified(exact_batch=size)
    assert found == size
    assert (cost is None) == (size == SLOTS)
    assert engine.pad_solo_from == PAD_FROM_TOKENS


class Restless(DeterministicEngine):
    """Computes nothing twice in the same way."""

    count = 0

    def logits(self, index: int) -> NDArray[np.float32]:
        self.count += 1
        return super().logits(index) + np.float32(self.count)


def test_what_is_never_the_same_is_certified_for_nothing() -> None:
    engine = Restless(slots=SLOTS, window=WINDOW)
    assert certify(engine) == (0, None)
    assert engine.row_bytes == 0
    assert engine.pad_solo_from == PAD_FROM_TOKENS
    assert lengths_of(engine) == [0] * SLOTS


def test_within_the_certified_size_it_is_exact_and_beyond_it_is_not(
    breaks_early: Certified,
) -> None:
    engine, size, _ = breaks_early
    lengths = range(3, 3 + SLOTS)
    expected = [
        run_solo(engine, job.prompt, job.decoding).digests for job in jobs_of(engine, lengths, 8)
    ]
    digests, steps = [], []
    for certified in (size, 0):
        batcher = CheckedBatcher(engine, certified, PLENTY)
        jobs = jobs_of(engine, lengths, 8)
        finish(batcher, *jobs)
        digests.append([job.digests for job in jobs])
        steps.append(batcher.steps)
        for job in jobs:
            batcher.drop(job.ctx)
    assert digests[0] == expected != digests[1]
    assert steps[0] > steps[1]


# --- moves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", ["copy", "swap", "paste"])
def test_what_goes_on_otherwise_behind_a_move_is_not_moved(move: str) -> None:
    engine, size, cost = certified(inexact_after={move})
    assert (size, cost) == (SLOTS, None)
    assert engine.row_bytes == 0
    assert lengths_of(engine) == [0] * SLOTS


def test_what_cannot_be_cut_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(slot: int, spans: list[tuple[int, int]]) -> None:
        raise ValueError("the state has another form")

    engine = DeterministicEngine(slots=SLOTS, window=WINDOW)
    monkeypatch.setattr(engine, "cut", cut)
    assert certify(engine) == (SLOTS, None)
    assert engine.row_bytes == 0
    assert lengths_of(engine) == [0] * SLOTS


# --- padding ------------------------------------------------------------------------------------


def test_padding_for_solo_sequences_makes_no_batch_too_large() -> None:
    """Long sequences in every other slot decode while those between them are prefilled."""
    engine, size, _ = certified(exact_batch=3)
    jobs = jobs_of(engine, [3, PAD_FROM_TOKENS, 4, PAD_FROM_TOKENS, WINDOW - 10, WINDOW - 10], 20)
    by_ctx = {job.ctx: job for job in jobs}
    long, between = jobs[1:4:2], jobs[4:]
    batcher = CheckedBatcher(engine, size, PLENTY)
    for job in jobs[:4]:
        batcher.run(job.run())
    while not all(job.tokens for job in long):
        report(batcher, by_ctx)
    for job in (jobs[0], jobs[2]):
        batcher.drop(job.ctx)
    for job in between:
        batcher.run(job.run())
    for _ in range(5):
        report(batcher, by_ctx)
    assert {slot: run.sequence.ctx for slot, run in batcher.running.items()} == {
        0: 4, 1: 1, 2: 5, 3: 3,
    }  # fmt: skip
    assert not all(job.tokens for job in between)
    for job in jobs:
        batcher.drop(job.ctx)
    for job in long:
        count = len(job.digests)
        assert count > 5
        assert job.digests == run_solo(engine, job.prompt, job.decoding).digests[:count]


def test_with_padding_it_is_exact_on_all_slots(needs_padding: Certified) -> None:
    """Sequences begin one after the other: each is solo once, and in batches of all sizes."""
    engine, size, cost = needs_padding
    assert (size, cost) == (SLOTS, None)
    lengths = [3, CHUNK_TOKENS, CHUNK_TOKENS + 1, PAD_FROM_TOKENS - 2, 5, 40]
    expected = [
        run_solo(engine, job.prompt, job.decoding).digests for job in jobs_of(engine, lengths, 20)
    ]
    jobs = jobs_of(engine, lengths, 20)
    by_ctx = {job.ctx: job for job in jobs}
    batcher = CheckedBatcher(engine, size, PLENTY)
    for job in jobs:
        batcher.run(job.run())
        for _ in range(3):
            report(batcher, by_ctx)
    while batcher.running:
        report(batcher, by_ctx)
    for job in jobs:
        batcher.drop(job.ctx)
    assert [job.digests for job in jobs] == expected


def test_without_padding_a_solo_sequence_is_found_out(needs_padding: Certified) -> None:
    engine = needs_padding.engine
    decoding = Decoding(max_tokens=4, ignore_eos=True, digest=True)
    prompt = text(engine, 16)
    padded = run_solo(engine, prompt, decoding).digests
    before, engine.pad_solo_from = engine.pad_solo_from, PAD_FROM_TOKENS
    assert (run_solo(engine, prompt, decoding).digests == padded) == (before == PAD_FROM_TOKENS)
