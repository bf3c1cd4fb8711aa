"""The prefix cache and its KV blocks in RAM and on disk, one thing at a time."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_slot import PAGE, PLENTY, ROW, Clock, Slot, history, rows_of

from aios.kernel.core.disk import BlockName, Disk
from aios.kernel.core.engine import CHUNK_TOKENS
from aios.kernel.core.history import Op, chain, length, plan
from aios.kernel.core.prefix_cache import PrefixCache
from aios.kernel.core.protocol import PREFILLED, Segment
from aios.kernel.core.tiered_cache import DISK_RETRY_S


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path, b"f" * 16, PLENTY)


@pytest.fixture
def cache(disk: Disk, clock: Clock) -> Iterator[PrefixCache]:
    cache = PrefixCache(PLENTY, ROW, disk, clock)
    yield cache
    assert cache.check() == []


def save(cache: PrefixCache, ctx: int, ops: list[Op]) -> int:
    """Save a context, and return how many tokens were cut."""
    slot = Slot(ops)
    cache.save(ctx, ops, chain(ops), slot.cut)
    return slot.cuts


def load(cache: PrefixCache, ctx: int, ops: list[Op]) -> int:
    slot = Slot([])
    count = cache.load(ctx, ops, chain(ops), slot.paste, beyond=0)
    assert slot.rows.tobytes() == rows_of(ops[:count]).tobytes()
    return length(ops[:count])


def offload(cache: PrefixCache, ops: list[Op]) -> int:
    """Offload a context, and return how many bytes went to disk."""
    before = cache.tiers.written
    cache.offload(chain(ops))
    cache.tiers.flush()
    return cache.tiers.written - before


def test_a_save_cuts_what_grew(cache: PrefixCache) -> None:
    ops = history(("p", 100), ("d", 70))
    first = history(("p", 100), ("d", 3))
    assert save(cache, 1, first) == 103
    assert save(cache, 1, first) == 0
    assert (
        save(cache, 1, ops) == 170 - CHUNK_TOKENS
    )  # the open page as one, all pages before not at all
    assert cache.tiers.ram == 170 * ROW
    assert len(cache.tiers.blocks) == 3
    assert load(cache, 1, ops) == 170


def test_what_is_on_disk_is_not_written_again(cache: PrefixCache) -> None:
    ops = history(("p", 100), ("d", 70))
    first = history(("p", 100), ("d", 3))
    save(cache, 1, first)
    assert offload(cache, first) > 103 * ROW
    save(cache, 1, ops)
    grown = offload(cache, ops)
    assert 67 * ROW < grown < 67 * ROW + 2 * 100  # in two pages, with a header each
    assert load(cache, 1, ops) == 170


def test_files_keep_within_the_budget_with_their_headers(tmp_path: Path, clock: Clock) -> None:
    disk = Disk(tmp_path, b"f" * 16, 4 * PAGE)
    cache = PrefixCache(PLENTY, ROW, disk, clock)
    ops = history(("p", 4 * CHUNK_TOKENS))
    save(cache, 1, ops)
    offload(cache, ops)
    assert 2 * PAGE < cache.tiers.on_disk <= disk.budget
    assert sum(path.stat().st_size for path in disk.folder.iterdir()) <= disk.budget
    assert load(cache, 1, ops) == length(ops)


def test_contexts_that_begin_alike_share(cache: PrefixCache) -> None:
    one, other = (history(("p", 150), ("d", n)) for n in (5, 20))
    save(cache, 1, one)
    assert save(cache, 2, other) == 15
    third = [*one[:2], *history(("p", 150), ("p", 9), start=5)[3:]]
    assert load(cache, 3, third) == 2 * CHUNK_TOKENS
    assert cache.tiers.ram == 170 * ROW


def test_how_a_token_entered_is_part_of_what_it_is_found_by(cache: PrefixCache) -> None:
    save(cache, 1, history(("p", 1), ("d", 1)))
    assert load(cache, 2, history(("p", 1), ("p", 1))) == 1
    assert load(cache, 2, history(("p", 2))) == 0


def test_what_came_before_is_part_of_what_it_is_found_by(cache: PrefixCache) -> None:
    same: Segment = (PREFILLED, [*range(CHUNK_TOKENS)])
    one, other = (plan([(PREFILLED, [token] * CHUNK_TOKENS), same]) for token in (7, 8))
    save(cache, 1, one)
    assert save(cache, 2, other) == 2 * CHUNK_TOKENS
    assert load(cache, 3, other) == load(cache, 3, one) == 2 * CHUNK_TOKENS


def test_blocks_that_overlap_on_disk_fit_together(disk: Disk, tmp_path: Path) -> None:
    """A core that was killed before it had removed the shorter one leaves both."""
    ops = history(("p", 70), ("d", 30))
    for end in (10, len(ops)):
        rows = rows_of(ops[:end])[ROW * CHUNK_TOKENS :]
        disk.write(BlockName(chain(ops)[end - 1], CHUNK_TOKENS, rows.size // ROW), rows)
    disk.write(BlockName(chain(ops)[0], 0, CHUNK_TOKENS), rows_of(ops[:1]))
    cache = PrefixCache(PLENTY, ROW, Disk(tmp_path, b"f" * 16, PLENTY))
    assert load(cache, 1, ops) == 100
    assert cache.check() == []


def test_part_of_a_block_is_of_use(cache: PrefixCache) -> None:
    ops = history(("p", 70), ("d", 50))
    save(cache, 1, ops)
    assert load(cache, 1, ops[:30]) == length(ops[:30])
    offload(cache, ops)
    assert load(cache, 2, ops[:20]) == length(ops[:20])


def test_dropped_it_leaves_the_disk_and_its_beginning_stays_in_ram(
    cache: PrefixCache, disk: Disk
) -> None:
    ops = history(("p", 128), ("d", 30))
    save(cache, 1, ops)
    save(cache, 2, ops[:1])
    offload(cache, ops)
    cache.drop(1, chain(ops[:2]))
    cache.tiers.flush()
    assert [path.name for path in disk.folder.iterdir()] == [f"{chain(ops)[0].hex()}-0-64"]
    assert load(cache, 3, ops) == 128
    cache.drop(2, [])
    cache.drop(3, [])
    cache.tiers.flush()
    assert (list(disk.folder.iterdir()), cache.tiers.blocks) == ([], set())


def test_dropped_while_it_is_written_it_does_not_stay_on_disk(
    cache: PrefixCache, disk: Disk
) -> None:
    ops = history(("p", 128))
    save(cache, 1, ops)
    cache.offload(chain(ops))
    cache.drop(1, chain(ops))
    cache.tiers.flush()
    assert list(disk.folder.iterdir()) == []
    assert load(cache, 2, ops) == 128


def test_ends_go_before_beginnings_and_prefills_before_decoded(clock: Clock) -> None:
    cache = PrefixCache(6 * PAGE + PAGE // 2, ROW, None, clock)
    prefilled = history(("p", 3 * CHUNK_TOKENS))
    decoded = history(("p", 1), ("d", 3 * CHUNK_TOKENS - 1))
    save(cache, 1, decoded)
    clock.now += 1  # to prefill is cheaper than that second
    save(cache, 2, prefilled)
    clock.now += 10
    save(cache, 3, history(("p", CHUNK_TOKENS), start=500))
    assert load(cache, 1, decoded) == 3 * CHUNK_TOKENS
    assert load(cache, 2, prefilled) == 2 * CHUNK_TOKENS
    assert cache.tiers.lost == 1
    assert cache.check() == []


def test_a_beginning_is_not_lost_before_its_end_though_it_costs_less(clock: Clock) -> None:
    cache = PrefixCache(3 * PAGE + PAGE // 2, ROW, None, clock)
    ops = history(("p", 2 * CHUNK_TOKENS), ("d", CHUNK_TOKENS))
    save(cache, 1, ops)
    clock.now += 10
    save(cache, 2, history(("p", CHUNK_TOKENS), start=500))
    assert load(cache, 1, ops) == 2 * CHUNK_TOKENS


def test_what_nobody_uses_goes_first(clock: Clock) -> None:
    cache = PrefixCache(3 * PAGE + PAGE // 2, ROW, None, clock)
    used, unused, new = (history(("p", CHUNK_TOKENS), start=start) for start in (0, 100, 200))
    save(cache, 1, used)
    clock.now += 1000
    save(cache, 2, unused)
    cache.drop(2, chain(unused))
    save(cache, 3, new)
    save(cache, 4, history(("p", CHUNK_TOKENS), start=300))
    assert (load(cache, 1, used), load(cache, 2, unused)) == (CHUNK_TOKENS, 0)
    assert cache.tiers.lost == 0


def test_half_of_ram_is_clean_so_that_nothing_is_lost(
    cache: PrefixCache, disk: Disk, clock: Clock
) -> None:
    cache.tiers.budget = 8 * PAGE
    contexts = [history(("p", CHUNK_TOKENS), start=1000 * ctx) for ctx in range(40)]
    for ctx, ops in enumerate(contexts):
        clock.now += 1
        save(cache, ctx, ops)
        cache.tiers.flush()
        assert cache.tiers.dirty <= 4 * PAGE
    assert [load(cache, ctx, ops) for ctx, ops in enumerate(contexts)] == [CHUNK_TOKENS] * 40
    assert cache.tiers.lost == 0
    assert cache.tiers.peak <= 8 * PAGE


def test_over_the_disk_s_budget_the_coldest_files_go(tmp_path: Path, clock: Clock) -> None:
    contexts = [history(("p", CHUNK_TOKENS), start=1000 * ctx) for ctx in range(20)]
    size = PAGE + 60  # with its header
    cache = PrefixCache(0, ROW, Disk(tmp_path, b"f" * 16, 10 * size), clock)
    for ctx, ops in enumerate(contexts):
        clock.now += 1
        save(cache, ctx, ops)
        cache.tiers.flush()
    held = [load(cache, ctx, ops) for ctx, ops in enumerate(contexts)]
    assert held[:10] == [0] * 10
    assert held[12:] == [CHUNK_TOKENS] * 8
    assert cache.check() == []
    smaller = PrefixCache(0, ROW, Disk(tmp_path, b"f" * 16, 3 * size), clock)
    assert smaller.check() == []
    assert 0 < len(smaller.tiers.blocks) <= 3


def test_a_full_disk_is_told_once_and_tried_again_later(
    cache: PrefixCache, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    ops = history(("p", 4 * CHUNK_TOKENS))
    save(cache, 1, ops)
    with file_size_limit(PAGE):  # a file, with its header, is larger
        assert offload(cache, ops) == 0
        assert offload(cache, ops) == 0
    assert cache.tiers.failures == 4
    assert capfd.readouterr().err.count("no snapshots go to disk") == 1
    assert offload(cache, ops) == 0
    assert load(cache, 1, ops) == 4 * CHUNK_TOKENS
    clock.now += DISK_RETRY_S
    assert offload(cache, ops) > 4 * PAGE


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes past `size` fail, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_missing_file_is_counted_and_costs_what_is_behind_it(
    disk: Disk, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = PrefixCache(0, ROW, disk, clock)
    ops = history(("p", 4 * CHUNK_TOKENS))
    save(cache, 1, ops)
    cache.tiers.flush()
    (disk.folder / f"{chain(ops)[2].hex()}-128-64").unlink()
    assert load(cache, 1, ops) == 2 * CHUNK_TOKENS
    assert cache.tiers.bad == 1
    assert "computed again" in capfd.readouterr().err
    assert load(cache, 1, ops) == 2 * CHUNK_TOKENS
    assert cache.tiers.bad == 1
    assert save(cache, 1, ops) > 0


def test_what_was_read_ahead_is_not_read_again(cache: PrefixCache, clock: Clock) -> None:
    ops = history(("p", 100), ("d", 50))
    save(cache, 1, ops)
    offload(cache, ops)
    assert load(cache, 1, ops) == 150  # and leaves RAM, since it is in a slot then
    assert cache.tiers.ram == 0
    cache.prefetch(ops, chain(ops))
    cache.prefetch(ops, chain(ops))
    cache.tiers.flush()
    read = cache.tiers.read
    assert read > 150 * ROW
    assert load(cache, 1, ops) == 150
    assert cache.tiers.read == read


def test_a_load_takes_over_what_is_being_read_ahead(cache: PrefixCache, clock: Clock) -> None:
    ops = history(("p", 100), ("d", 50))
    save(cache, 1, ops)
    offload(cache, ops)
    load(cache, 1, ops)
    cache.prefetch(ops, chain(ops))
    assert load(cache, 1, ops) == 150
    read = cache.tiers.read
    cache.tiers.flush()
    assert cache.tiers.read == read


def test_of_a_model_whose_rows_cannot_be_cut_nothing_is_kept() -> None:
    cache = PrefixCache(PLENTY, 0)
    ops = history(("p", 100))
    assert save(cache, 1, ops) == 0
    assert cache.match_prefix(ops, chain(ops)) == 0
    assert cache.check() == []
