"""Exactness on real models, bit for bit.

Everything else about batching and snapshots is tested on the deterministic engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from batcher_harness import (
    PLENTY,
    CheckedBatcher,
    Job,
    at_random,
    run_all_solo,
    run_solo,
    some,
    take_turns,
    text,
)
from models import tiny_model

from aios.kernel.config import embedded_model
from aios.kernel.core.disk import Disk
from aios.kernel.core.llama import Cache, LlamaEngine

WINDOW = 320


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    engine = LlamaEngine(embedded_model(), slots=3, window=WINDOW, threads=2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def solo(engine: LlamaEngine) -> list[Job]:
    return run_all_solo(engine)


def test_no_schedule_can_be_told_from_the_output(engine: LlamaEngine, solo: list[Job]) -> None:
    jobs = [Job(ctx, job.prompt, job.decoding) for ctx, job in enumerate(solo, 1)]
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    at_random(batcher, jobs, seed=1)
    assert [job.result for job in jobs] == [job.result for job in solo]
    assert batcher.saves and batcher.restores
    assert batcher.replayed == 0
    for job in jobs:
        batcher.drop(job.ctx)


def test_contexts_swapped_to_disk_and_back_are_the_same(
    engine: LlamaEngine, solo: list[Job], tmp_path: Path
) -> None:
    jobs = [Job(ctx, job.prompt, job.decoding) for ctx, job in enumerate(solo, 1)]
    disk = Disk(tmp_path, engine.fingerprint(3), PLENTY, "zstd")
    batcher = CheckedBatcher(engine, engine.slots, 0, disk)
    take_turns(batcher, jobs)
    assert [job.result for job in jobs] == [job.result for job in solo]
    assert batcher.counters().restores >= 4
    assert batcher.counters().read > 200 * 20_000
    assert batcher.replayed == 0
    for job in jobs:
        batcher.drop(job.ctx)


@pytest.mark.parametrize(
    ("model", "cache"), [("tiny", "f16"), ("tiny", "q8_0"), ("embedded", "q8_0")]
)
def test_a_quantized_cache_is_exact_by_itself_and_differs_from_the_other(
    tmp_path: Path, model: str, cache: Cache
) -> None:
    path = embedded_model() if model == "embedded" else tiny_model(tmp_path / "tiny.gguf")
    engine = LlamaEngine(path, slots=2, window=WINDOW, threads=1, cache=cache)
    assert engine.row_bytes * engine.cells * engine.streams == engine.cache_bytes
    expected = [run_solo(engine, text(engine, n), some(6)) for n in (150, 40, 70, 9)]
    jobs = [Job(ctx, job.prompt, job.decoding) for ctx, job in enumerate(expected)]
    disk = Disk(tmp_path / "kv", engine.fingerprint(2), PLENTY)
    batcher = CheckedBatcher(engine, engine.slots, 0, disk)
    take_turns(batcher, jobs)
    assert [job.result for job in jobs] == [job.result for job in expected]
    assert batcher.counters().read > 0
    assert batcher.prefix_cache.check() == []
    digest = jobs[0].digests[0].hex()
    engine.close()
    plain = LlamaEngine(path, slots=2, window=WINDOW, threads=1)
    same = run_solo(plain, expected[0].prompt, some(6)).digests[0].hex() == digest
    plain.close()
    assert same == (cache == "f16")
