"""Quotas of agents and the size of the store: past them nothing is written, and all is read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Boot
from helpers import result_of

from aios.agents import connect
from aios.syscalls.errors import AiosError, LimitReached, StoreFull

Program = Callable[[str], str]


def test_past_its_quota_an_agent_reads_on(boot: Boot, program: Program) -> None:
    system = boot(storage_bytes=1 << 20)
    path = program(
        "found = []\n"
        "for number, size in enumerate(task):\n"
        "    try:\n        found.append(aios.sto_put(str(number), os.urandom(size)).version)\n"
        "    except AiosError as error:\n        found.append(error.code)\n"
        "found.append(len(aios.sto_get('0')))\naios.sto_purge('0')\n"
        "aios.sto_put('again', os.urandom(600_000))\n"
        "return found"
    )
    with connect(system.home) as aios:
        sizes = [600_000, 600_000, 50_000, 10_000_000, 50_000]
        found = result_of(aios, path, sizes, name="greedy")
        assert found == [1, "limit", 1, "limit", 1, 600_000]
        (holding,) = aios.sto_owners()
        assert holding.owner == "/greedy"
        assert 700_000 < holding.bytes < 710_000
        heirs = program(
            "spawn = lambda n: aios.spawn(task, [200_000], name=f'n{n}')\n"
            "found = [aios.wait(spawn(n)).result for n in range(2)]\n"
            "return [first[0] for first in found]"
        )
        child = program("try:\n    return [aios.sto_put('0', os.urandom(task[0])).version]\n"
                        "except AiosError as error:\n    return [error.code]")  # fmt: skip
        assert result_of(aios, heirs, child, name="greedy") == [1, "limit"]
        aios.sto_put("a person has none", bytes(2 << 20))
        assert aios.sto_verify().wait()["problems"] == []


def test_what_a_version_says_of_itself_counts_against_the_quota(
    boot: Boot, program: Program
) -> None:
    path = program(
        "tags = [chr(0x20000 + n) * 64 for n in range(32)]\nput = 0\n"
        "try:\n    while True:\n"
        "        aios.sto_batch([{'path': 'a', 'data': b'', 'tags': tags}] * 4)\n        put += 4\n"
        "except AiosError as error:\n    aios.sto_purge('a')\n    return [put, error.code]"
    )
    with connect(boot(storage_bytes=1 << 20).home) as aios:
        put, code = result_of(aios, path, name="wordy")
        assert (100 < put < 128, code) == (True, "limit")
        assert [holding.bytes for holding in aios.sto_owners()] == [256]  # purged: the path alone
        assert aios.sto_verify().wait()["problems"] == []


def test_a_full_store_refuses_and_reads_on(boot: Boot) -> None:
    system = boot(store_bytes=1 << 25)
    with connect(system.home) as aios:
        kept = 0
        with pytest.raises(AiosError) as refused:
            while kept < 100:
                aios.sto_put(f"a{kept}", os.urandom(1 << 20))
                kept += 1
        assert refused.value.code == "store.full"
        assert kept > 15
        assert len(aios.sto_get("a0")) == 1 << 20
        for number in range(4):
            aios.sto_purge(f"a{number}")
        assert aios.sto_put("b", b"x" * 100).version == 1
        assert aios.sto_verify().wait()["problems"] == []


@pytest.mark.parametrize("place", ["lmdb", "folder"])
def test_rows_alone_do_not_fill_a_store_for_good(boot: Boot, tmp_path: Path, place: str) -> None:
    """Adding rows is refused while there is still room in which to remove some."""
    blobs = "lmdb" if place == "lmdb" else f"file://{tmp_path}/blobs"
    system = boot(store_bytes=1 << 25, blobs=blobs)
    tags = [f"{number:02}" + "t" * 62 for number in range(32)]
    with connect(system.home) as aios:
        count = 0
        with pytest.raises(StoreFull):
            while True:
                aios.sto_batch(
                    [{"path": f"{count}/{n}", "data": b"", "tags": tags} for n in range(20)]
                )
                count += 1
        assert count > 100
        for adds in (  # each fills up what a small row may still have fitted in
            lambda n: aios.sto_put("0/0", b"", tags=tags),
            lambda n: aios.sto_delete(f"{n // 20}/{n % 20}"),
            lambda n: aios.sto_rollback("0/0", 1),
            lambda n: aios.sto_share("0", f"/x{n}"),
            lambda n: aios.sto_upload(io.BytesIO(bytes(300_000))),
            lambda n: aios.mem_put({f"a{n}": "x" * 9000}, principal="/w"),
        ):
            with pytest.raises((StoreFull, LimitReached)):  # of uploads 16 may fit
                for number in range(1000):
                    adds(number)
        for number in range(count):
            aios.sto_purge(f"{number}/0")
        assert aios.sto_compact(1).wait()["chunks"] == 0
        for number in range(count):
            purges = [aios.start("sto.purge", path=f"{number}/{n}") for n in range(1, 20)]
            for purge in purges:
                purge.wait()
        aios.mem_put({"a": "x" * 9000}, principal="/w")
        aios.sto_put("0/0", b"", tags=tags)
        assert aios.sto_verify().wait()["problems"] == []
