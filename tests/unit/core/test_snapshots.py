"""Snapshots: on disk and back, damaged, shared and forked, the same bits."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from batcher_harness import (
    PLENTY,
    CheckedBatcher,
    Job,
    at_random,
    finish,
    report,
    run_solo,
    take_turns,
    text,
)
from deterministic_engine import DeterministicEngine

from aios.kernel.core.disk import CodecName, Disk
from aios.kernel.core.engine import CHUNK_TOKENS, Engine
from aios.kernel.core.protocol import DECODED, PREFILLED, Halt, Segment
from aios.syscalls.llm import Decoding

WINDOW = 320
INCOMPRESSIBLE = 50  # bytes of a row's 64
SOME = Decoding(max_tokens=6, ignore_eos=True, digest=True)
OTHER = Decoding(max_tokens=6, ignore_eos=True, digest=True, temperature=0.9, seed=4)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return DeterministicEngine(slots=3, window=WINDOW)


class Cores:
    """Cores on one engine and one folder, one after the other."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self.engine, self.root = engine, root
        self.batchers: list[CheckedBatcher] = []

    def boot(
        self,
        ram: int = PLENTY,
        codec: CodecName = "plain",
        print_: bytes = b"f" * 16,
        **options: Any,
    ) -> CheckedBatcher:
        self.end()
        disk = Disk(self.root, print_, PLENTY, codec)
        batcher = CheckedBatcher(self.engine, self.engine.slots, ram, disk, **options)
        self.batchers.append(batcher)
        return batcher

    def end(self) -> None:
        """End the core; only its files stay."""
        if self.batchers:
            assert self.batchers[-1].prefix_cache.check() == []
        for slot in range(self.engine.slots):
            self.engine.clear(slot)

    def on_disk(self, *jobs: Job, codec: CodecName = "plain") -> list[Path]:
        """Run jobs, write their contexts to disk, and return the files."""
        batcher = self.boot(idle_ttl=-1.0, codec=codec)
        finish(batcher, *jobs)
        batcher.step()  # notices that they are idle
        batcher.prefix_cache.tiers.flush()
        self.end()
        return sorted(self.root.glob("*/*"))


@pytest.fixture
def cores(engine: Engine, tmp_path: Path) -> Iterator[Cores]:
    cores = Cores(engine, tmp_path)
    yield cores
    cores.end()


def going_on(ctx: int, job: Job, decoding: Decoding = SOME) -> Job:
    """A context that begins as `job`'s, whose last token is not decoded yet, and goes on."""
    return with_history(ctx, job.run().history, decoding)


def with_history(ctx: int, history: list[Segment], decoding: Decoding = SOME) -> Job:
    job = Job(ctx, [], decoding)
    job.context.history = [(how, list(tokens)) for how, tokens in history]
    return job


def undisturbed(engine: Engine, job: Job) -> list[bytes]:
    """The digests of the same history, all computed anew."""
    return solo_with(engine, job.run().history, job.decoding).digests


def solo_with(engine: Engine, history: list[Segment], decoding: Decoding) -> Job:
    batcher = CheckedBatcher(engine, engine.slots, 0)
    job = with_history(10**6, history, decoding)
    finish(batcher, job)
    batcher.drop(job.ctx)
    return job


# --- disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["plain", "zstd"])
def test_contexts_swapped_to_disk_and_back_are_the_same(
    engine: Engine, cores: Cores, codec: CodecName
) -> None:
    lengths = [
        (253, SOME),
        (CHUNK_TOKENS, OTHER),
        (5, SOME),
        (130, OTHER),
        (70, SOME),
        (100, OTHER),
    ]
    expected = [run_solo(engine, text(engine, n, i), d) for i, (n, d) in enumerate(lengths)]
    jobs = [Job(ctx, job.prompt, job.decoding) for ctx, job in enumerate(expected)]
    batcher = cores.boot(ram=0, codec=codec)
    take_turns(batcher, jobs)
    assert [job.result for job in jobs] == [job.result for job in expected]
    assert batcher.counters().restores >= 4
    assert batcher.counters().read > 200 * INCOMPRESSIBLE
    assert batcher.replayed == 0


def test_a_core_that_died_finds_its_contexts_on_disk(written: Written, cores: Cores) -> None:
    shutil.copytree(written.folder, cores.root, dirs_exist_ok=True)
    assert len(list(cores.root.glob("*/*"))) == 3  # two pages and what is in the third
    again = going_on(1, written.job)
    batcher = cores.boot()
    finish(batcher, again)
    assert again.digests == written.digests
    assert batcher.computed == 6  # the token that was not decoded, and five that were drawn
    assert batcher.counters().restores == 1
    assert batcher.counters().written == 0  # nothing of it has changed


class Written(NamedTuple):
    """A context on disk, and what it goes on with."""

    folder: Path
    job: Job
    digests: list[bytes]


@pytest.fixture(scope="module")
def written(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("written")
    job = Job(1, text(engine, 150), SOME)
    Cores(engine, folder).on_disk(job)
    return Written(folder, job, undisturbed(engine, going_on(1, job)))


@pytest.mark.parametrize("at", [0, 1, 52, 53, 1000, 4000, -1])
@pytest.mark.parametrize("how", ["cut short", "changed"])
def test_a_damaged_snapshot_costs_time_and_nothing_else(
    written: Written, cores: Cores, at: int, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(written.folder, cores.root, dirs_exist_ok=True)
    (second,) = cores.root.glob("*/*-64-64")
    content = bytearray(second.read_bytes())
    content[at] ^= 4
    second.write_bytes(content[:at] if how == "cut short" else content)
    again = going_on(1, written.job)
    batcher = cores.boot()
    finish(batcher, again)
    assert again.digests == written.digests
    counters = batcher.counters()
    assert (counters.bad_snapshots, counters.restores) == (1, 1)
    assert batcher.computed == 150 - CHUNK_TOKENS + 5 + 6
    assert "computed again" in capfd.readouterr().err


def test_snapshots_of_another_model_are_not_looked_at(written: Written, cores: Cores) -> None:
    shutil.copytree(written.folder, cores.root, dirs_exist_ok=True)
    files = list(cores.root.glob("*/*"))
    again = going_on(1, written.job)
    batcher = cores.boot(print_=b"another model..!")
    finish(batcher, again)
    assert again.digests == written.digests
    assert (batcher.counters().read, batcher.counters().bad_snapshots) == (0, 0)
    assert not any(path.exists() for path in files)


def test_a_full_disk_is_no_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = DeterministicEngine(slots=3, window=WINDOW, row_bytes=2_048)
    cores = Cores(engine, tmp_path)
    expected = [run_solo(engine, text(engine, 100, i), SOME) for i in range(5)]
    jobs = [Job(ctx, job.prompt, SOME) for ctx, job in enumerate(expected)]
    batcher = cores.boot(ram=182 * engine.row_bytes)
    with no_large_files():
        at_random(batcher, jobs, seed=1)
        batcher.prefix_cache.tiers.flush()
    assert [job.result for job in jobs] == [job.result for job in expected]
    assert batcher.counters().disk_failures > 0
    assert capfd.readouterr().err.count("no snapshots go to disk") == 1
    assert list(cores.root.glob("*/*")) == []


@contextmanager
def no_large_files() -> Iterator[None]:
    """Writes fail as on a full disk, where a file gets larger than any extent of one token."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_idle_contexts_go_to_disk_and_those_that_wait_do_not(engine: Engine, cores: Cores) -> None:
    now = 0.0
    batcher = cores.boot(idle_ttl=60.0, clock=lambda: now)
    idle, waits = Job(1, text(engine, 100), SOME), Job(2, text(engine, 80, 9), SOME)
    finish(batcher, idle)
    batcher.run(waits.run())
    report(batcher, {2: waits})
    batcher.halt(Halt(2, "preempted"))
    for now in (59.0, 61.0):  # noqa: B007
        assert batcher.prefix_cache.tiers.written == 0
        batcher.step()
        batcher.prefix_cache.tiers.flush()
    names = {path.name.split("-", 1)[1] for path in cores.root.glob("*/*")}
    assert names == {"0-64", "64-41"}
    assert batcher.slots.count(None) == 1  # they keep their slots all the same


def test_a_context_that_is_read_ahead_waits_for_no_disk(engine: Engine, cores: Cores) -> None:
    first = Job(1, text(engine, 150), SOME)
    others = [Job(ctx, text(engine, 9, ctx), SOME) for ctx in (2, 3, 4)]
    batcher = cores.boot(ram=0)
    finish(batcher, first)
    finish(batcher, *others)  # takes its slot
    batcher.prefix_cache.tiers.flush()
    batcher.prefix_cache.tiers.budget = PLENTY
    assert batcher.prefix_cache.tiers.ram == 0
    batcher.prefetch(1)
    batcher.prefetch(2)  # is in a slot
    batcher.prefetch(99)
    batcher.prefix_cache.tiers.flush()
    read = batcher.counters().read
    assert read > 150 * INCOMPRESSIBLE
    again = going_on(1, first)
    finish(batcher, again)
    assert batcher.counters().read == read
    assert batcher.replayed == 0


# --- sharing ------------------------------------------------------------------------------------


def test_a_beginning_that_all_have_is_computed_once(engine: Engine, cores: Cores) -> None:
    """Contexts start at the same moment, on fewer slots than there are contexts."""
    system = text(engine, 200)
    prompts = [[*system, *text(engine, 20, start)] for start in range(7)]
    expected = [run_solo(engine, each, SOME) for each in prompts]
    jobs = [Job(ctx, each, SOME) for ctx, each in enumerate(prompts)]
    batcher = cores.boot()
    at_once = {job.ctx: job for job in jobs}
    waiting = list(jobs)
    while waiting or batcher.running:
        while waiting and len(batcher.running) < engine.slots:
            batcher.run(waiting.pop(0).run())
        report(batcher, at_once)
    assert [job.result for job in jobs] == [job.result for job in expected]
    own = 220 - 3 * CHUNK_TOKENS + 5  # the rest of the prompt, and what was drawn and decoded
    assert batcher.computed == 3 * CHUNK_TOKENS + 7 * own
    assert batcher.shared == 6 * 3 * CHUNK_TOKENS


def test_a_fork_computes_only_what_is_its_own(engine: Engine, cores: Cores) -> None:
    parent = Job(1, text(engine, 100), Decoding(max_tokens=30, ignore_eos=True, digest=True))
    middle: list[Segment] = [(PREFILLED, parent.prompt), (DECODED, [])]
    finish(cores.boot(), parent)
    middle[1][1].extend(parent.tokens[:20])
    told: list[Segment] = [*middle, (PREFILLED, text(engine, 30, 50))]
    expected = [solo_with(engine, middle, OTHER), solo_with(engine, told, SOME)]
    batcher = cores.boot()
    parent = Job(1, parent.prompt, parent.decoding)
    finish(batcher, parent)
    batcher.computed = 0
    forks = [with_history(2, middle, OTHER), with_history(3, told, SOME)]
    finish(batcher, *forks)
    assert [fork.result for fork in forks] == [job.result for job in expected]
    assert batcher.computed == (1 + 5) + (30 + 5)
    assert batcher.replayed == 0


def test_rolled_back_it_goes_on_from_there(engine: Engine, cores: Cores) -> None:
    """A context goes to its middle, and back to its end, after it had to leave its slot."""
    long = Decoding(max_tokens=30, ignore_eos=True, digest=True)
    whole = run_solo(engine, text(engine, 100), long)
    middle: list[Segment] = [(PREFILLED, whole.prompt), (DECODED, whole.tokens[:20])]
    end: list[Segment] = [(PREFILLED, whole.prompt), (DECODED, whole.tokens[:29])]
    expected = [solo_with(engine, history, OTHER) for history in (middle, end)]
    batcher = cores.boot()
    finish(batcher, Job(1, whole.prompt, long))
    finish(batcher, *(Job(ctx, text(engine, 9, ctx), SOME) for ctx in (2, 3, 4)))
    batcher.computed = 0
    back, forth = with_history(1, middle, OTHER), with_history(1, end, OTHER)
    finish(batcher, back)
    finish(batcher, forth)
    assert [back.result, forth.result] == [job.result for job in expected]
    assert batcher.computed == 2 * (1 + 5)


# --- models whose rows cannot be moved -----------------------------------------------------------


def test_a_model_whose_state_has_another_form_is_replayed(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [run_solo(engine, text(engine, 70, i), SOME) for i in range(5)]
    monkeypatch.setattr(engine, "row_bytes", 0)
    jobs = [Job(ctx, job.prompt, SOME) for ctx, job in enumerate(expected)]
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    at_random(batcher, jobs, seed=2)
    assert [job.result for job in jobs] == [job.result for job in expected]
    assert batcher.replayed > 0
    assert batcher.counters().extents == batcher.shared == 0
    for job in jobs:
        batcher.drop(job.ctx)


def test_of_such_a_model_nothing_is_rolled_back_in_its_slot(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp may have dropped what the shorter context would need."""
    monkeypatch.setattr(engine, "row_bytes", 0)
    job = Job(1, text(engine, 70), SOME)
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    finish(batcher, job)
    batcher.computed = 0
    finish(batcher, going_on(1, job))
    assert batcher.computed == 6
    batcher.computed = 0
    finish(batcher, with_history(1, [(PREFILLED, job.prompt[:66])]))
    assert batcher.computed == 66 + 5
    batcher.drop(1)
