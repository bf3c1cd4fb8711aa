"""The self-test at model load: what it certifies holds, and what it does not certify breaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cores import PLENTY, Job, Watched, alone, finish, report

from aios.kernel.config import embedded_model
from aios.kernel.core.certify import certify
from aios.kernel.core.engine import CHUNK
from aios.kernel.core.gguf import requantize
from aios.kernel.core.llama import ALONE, LlamaEngine
from aios.syscalls.messages import Decoding

SLOTS, WINDOW = 6, 320
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. "


class Certified(NamedTuple):
    engine: LlamaEngine
    size: int
    cost: float | None


def load(path: Path) -> Certified:
    engine = LlamaEngine(path, slots=SLOTS, window=WINDOW, threads=2)
    return Certified(engine, *certify(engine))


@pytest.fixture(scope="module")
def plain() -> Iterator[Certified]:
    found = load(embedded_model())
    yield found
    found.engine.close()


@pytest.fixture(scope="module")
def breaks_early(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certified]:
    """A format whose kernels compute several rows in another way than few; which one does, and from
    how many on, is the processor's and the build's."""
    path = tmp_path_factory.mktemp("model") / "requantized.gguf"
    for name in ("q4_k_m", "q5_k_m"):
        requantize(embedded_model(), path, name, 2)
        found = load(path)
        path.unlink()  # mapped, as long as it is loaded
        if found.size < SLOTS:
            yield found
            found.engine.close()
            return
        found.engine.close()
    pytest.fail("on this machine each of the formats is exact at every batch size")


@pytest.fixture(scope="module")
def needs_company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certified]:
    """A format of which llama.cpp computes one row with other kernels than several: on processors
    with AVX2 and on those with AVX-512, at least."""
    path = tmp_path_factory.mktemp("model") / "bf16.gguf"
    requantize(embedded_model(), path, "bf16", 2)
    found = load(path)
    yield found
    found.engine.close()


def jobs_of(engine: LlamaEngine, lengths: Iterable[int], max_tokens: int) -> list[Job]:
    tokens = engine.tokenize(TEXT * 30, start=True)
    decoding = Decoding(max_tokens=max_tokens, ignore_eos=True, digest=True)
    return [Job(i, tokens[i : i + length], decoding) for i, length in enumerate(lengths)]


def test_the_embedded_model_is_exact_on_all_slots(plain: Certified) -> None:
    assert (plain.size, plain.cost) == (SLOTS, None)


def test_the_self_test_leaves_the_cache_empty(plain: Certified, breaks_early: Certified) -> None:
    for engine in (plain.engine, breaks_early.engine):
        assert [engine.length(slot) for slot in range(SLOTS)] == [0] * SLOTS


def test_a_format_that_breaks_early_is_found_and_its_cost_measured(
    breaks_early: Certified,
) -> None:
    assert 1 <= breaks_early.size < SLOTS
    assert breaks_early.cost is not None
    assert breaks_early.cost > 0


def test_within_the_certified_size_it_is_exact_and_beyond_it_is_not(
    breaks_early: Certified,
) -> None:
    engine, size, _ = breaks_early
    lengths = range(3, 3 + SLOTS)
    expected = [
        alone(engine, job.prompt, job.decoding).digests for job in jobs_of(engine, lengths, 8)
    ]
    digests, steps = [], []
    for certified in (size, 0):
        batcher = Watched(engine, certified, PLENTY)
        jobs = jobs_of(engine, lengths, 8)
        finish(batcher, *jobs)
        digests.append([job.digests for job in jobs])
        steps.append(batcher.steps)
        for job in jobs:
            batcher.drop(job.ctx)
    assert digests[0] == expected != digests[1]
    assert steps[0] > steps[1]


def test_company_for_lone_contexts_makes_no_batch_too_large(breaks_early: Certified) -> None:
    """Contexts past ALONE in every other slot decode while those between them are prefilled."""
    engine, size, _ = breaks_early
    jobs = jobs_of(engine, [3, ALONE, 4, ALONE, WINDOW - 10, WINDOW - 10], 20)
    by_ctx = {job.ctx: job for job in jobs}
    long, between = jobs[1:4:2], jobs[4:]
    batcher = Watched(engine, size, PLENTY)
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
    assert {slot: gen.context.ctx for slot, gen in batcher.running.items()} == {
        0: 4, 1: 1, 2: 5, 3: 3,
    }  # fmt: skip
    assert not all(job.tokens for job in between)
    for job in jobs:
        batcher.drop(job.ctx)
    for job in long:
        count = len(job.digests)
        assert count > 5
        assert job.digests == alone(engine, job.prompt, job.decoding).digests[:count]


def test_with_company_bf16_is_exact_on_all_slots(needs_company: Certified) -> None:
    """They begin one after the other, so that each is alone once, and in batches of all sizes."""
    engine, size, cost = needs_company
    assert (size, cost) == (SLOTS, None)
    lengths = [3, CHUNK, CHUNK + 1, ALONE - 2, 5, 40]
    expected = [
        alone(engine, job.prompt, job.decoding).digests for job in jobs_of(engine, lengths, 20)
    ]
    jobs = jobs_of(engine, lengths, 20)
    by_ctx = {job.ctx: job for job in jobs}
    batcher = Watched(engine, size, PLENTY)
    for job in jobs:
        batcher.run(job.run())
        for _ in range(3):
            report(batcher, by_ctx)
    while batcher.running:
        report(batcher, by_ctx)
    for job in jobs:
        batcher.drop(job.ctx)
    assert [job.digests for job in jobs] == expected


def test_without_company_a_lone_context_is_found_out(needs_company: Certified) -> None:
    engine = needs_company.engine
    decoding = Decoding(max_tokens=4, ignore_eos=True, digest=True)
    prompt = engine.tokenize(TEXT, start=True)
    with_company = alone(engine, prompt, decoding).digests
    company, engine.alone = engine.alone, ALONE
    try:
        same = alone(engine, prompt, decoding).digests == with_company
    finally:
        engine.alone = company
    assert same == (company == ALONE)  # as the self-test has found
