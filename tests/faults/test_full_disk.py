"""A disk that is really full: a small tmpfs below store, contents, index or home. All
that was acknowledged stays, reads go on, errors are typed, and with room again all of it works
again."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands
import pytest
from conftest import eventually, run_system
from helpers import kill_kernel, running

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import DiskFull, IndexFailed, NotFound

pytestmark = pytest.mark.faults

SIZE = 32 << 20  # bytes of the disk
PIECE = 200_000  # bytes of a content


@contextmanager
def small_disk(at: Path, size: int = SIZE) -> Iterator[Path]:
    """A tmpfs, mounted at `at` while it is used."""
    at.mkdir(parents=True, exist_ok=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "aios-test", str(at)]
    mounted = subprocess.run(options, capture_output=True, text=True, check=False)
    if mounted.returncode:
        why = mounted.stderr.strip().rstrip(".")
        pytest.fail(
            f"a tmpfs is needed as a small disk: {why}. Run `make faults` as root; in a container "
            "that takes CAP_SYS_ADMIN", pytrace=False,
        )  # fmt: skip
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@contextmanager
def system_on(home: Path, folder: str, **settings: Any) -> Iterator[tuple[System, Path]]:
    """A system of which `folder` of the home is on a small disk, and that disk."""
    home.mkdir()
    with small_disk(home.parent / f"{home.name}-disk") as disk:
        (disk / folder).mkdir()
        (home / folder).symlink_to(disk / folder)
        for system in run_system(home, {"slots": 1, "ctx": 256, **settings}):
            yield system, disk


def fill(disk: Path) -> Path:
    """All room that is left, and the file to delete for it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    return ballast


def until_full(put: Callable[[int], object]) -> int:
    """How many were acknowledged before one was refused."""
    count = 0
    with pytest.raises(DiskFull) as refused:
        while count < 10_000:
            put(count)
            count += 1
    assert "room" in refused.value.hint
    return count


def content(number: int) -> bytes:
    return b"%d " % number * (PIECE // 10)


def test_memory(homes: Path) -> None:
    with (
        system_on(homes / "fm", "store", mem_resident=0) as (system, _),
        connect(system.home, "test") as aios,
    ):
        put = until_full(lambda n: aios.mem_put({f"k{n}": [n] * 6000}, principal="/w"))
        assert put > 100
        names = [f"k{n}" for n in range(put)]
        for _ in range(2):
            assert aios.mem_get(names, principal="/w") == {f"k{n}": [n] * 6000 for n in range(put)}
            until_full(lambda n: aios.mem_put({f"rest {n}": "x" * 50_000}, principal="/w"))
            refused = commands.run(system.home, "mem", "put", "/w", "new", "x" * 50_000)
            assert refused.returncode == 1
            assert "aios: the store cannot grow: No space left on device\n" in refused.stderr
            assert "hint: make room on that disk, or delete something\n" in refused.stderr
            kill_kernel(aios)
        assert aios.mem_delete(names[:60], principal="/w") == 60
        aios.mem_put({"new": 1}, principal="/w")
        assert aios.mem_get(["new", "k0", "k60"], principal="/w") == {"new": 1, "k60": [60] * 6000}
        assert aios.check() == []


@pytest.mark.parametrize("place", ["store", "blobs"])
def test_storage(homes: Path, place: str) -> None:
    """In the store, and in a folder of a full disk."""
    home = homes / f"fs-{place}"
    settings = {} if place == "store" else {"blobs": f"file://{home}/blobs"}
    with system_on(home, place, **settings) as (_, disk), connect(home, "test") as aios:
        put = until_full(lambda n: aios.sto_put(f"a{n}", content(n)))
        assert put > 20
        assert list((disk / "blobs" / "new").glob("*")) == []
        with pytest.raises(DiskFull):
            aios.sto_put("long", io.BytesIO(os.urandom(SIZE)))
        with pytest.raises(DiskFull):
            aios.sto_batch(
                [{"path": f"b{n}", "data": os.urandom(15_000)} for n in range(4)]
                + [{"path": "c", "upload": aios.sto_upload(io.BytesIO(os.urandom(PIECE * 4)))}]
            )
        for _ in range(2):
            assert [info.path for info in aios.sto_list("b")] == []
            for n in range(put):
                assert aios.sto_get(f"a{n}") == content(n)
            report = aios.sto_verify().wait()
            assert (report["problems"], report["objects"]) == ([], put)
            kill_kernel(aios)
        for n in range(0, put, 2):
            aios.sto_purge(f"a{n}")
        eventually(lambda: is_put(aios, "again"))
        assert aios.sto_get("again") == content(0)
        assert aios.sto_get("a1") == content(1)
        with pytest.raises(NotFound):
            aios.sto_get("a0")
        assert aios.sto_verify().wait()["problems"] == []
        assert aios.check() == []


def is_put(aios: Aios, path: str) -> bool:
    """Contents that were purged elsewhere are deleted by and by."""
    try:
        aios.sto_put(path, content(0))
    except DiskFull:
        return False
    return True


def test_the_index(homes: Path) -> None:
    with system_on(homes / "fi", "index") as (system, disk), connect(system.home, "test") as aios:
        aios.sto_put("one", "an umbrella against the rain")
        assert [hit.path for hit in aios.sto_search("umbrella", fresh=True).hits] == ["one"]
        ballast = fill(disk)
        for number in range(40):
            aios.sto_put(f"n{number}", f"a lighthouse, number {number} " * 400)
        eventually(lambda: "full" in aios.sto_index().trouble)
        found = aios.sto_search("umbrella")  # reads go on
        assert [hit.path for hit in found.hits] == ["one"]
        assert found.behind > 0
        with pytest.raises(IndexFailed, match="full"):  # rather than wait for ever
            aios.sto_search("lighthouse", fresh=True)
        ballast.unlink()
        eventually(lambda: aios.sto_index().behind == 0)
        assert aios.sto_index().trouble == ""
        assert len(aios.sto_search("lighthouse", count=50, fresh=True).hits) == 50


def test_the_whole_home(homes: Path) -> None:
    """Store, journal, logs and index on one disk, which another's file fills."""
    with small_disk(homes / "fh", 160 << 20) as home:
        for _ in run_system(home, {"slots": 1, "ctx": 256}):
            with connect(home, "test") as aios:
                aios.mem_put({"kept": "x" * 1000}, principal="/w")
                aios.sto_put("kept", content(1))
                ballast = fill(home)
                put = until_full(lambda n: aios.sto_put(f"a{n}", os.urandom(50_000)))
                assert aios.mem_get(["kept"], principal="/w") == {"kept": "x" * 1000}
                assert aios.mem_delete(["none"], principal="/w") == 0
                os.kill(aios.status().os_pid, signal.SIGKILL)
                ballast.unlink()  # the next kernel waits for room: it has to make a journal
                assert aios.mem_get(["kept"], principal="/w") == {"kept": "x" * 1000}
                assert aios.sto_get("kept") == content(1)
                assert len(list(aios.sto_list("a"))) == put
                eventually(lambda: is_put(aios, "again"))
                aios.mem_put({"more": 1}, principal="/w")
                assert aios.sto_verify().wait()["problems"] == []
                assert aios.check() == []


def test_what_ends_something_is_served_on_a_full_disk(
    homes: Path, program: Callable[[str], str]
) -> None:
    path = program("aios.recv()\nreturn 'the result'")
    with small_disk(homes / "fe", 96 << 20) as home:
        for _ in run_system(home, {"slots": 1, "ctx": 256}):
            with connect(home, "test") as aios:
                ends, waits = (running(aios, aios.spawn(path)).pid for _ in range(2))
                aios.send(ends, "end")
                named = aios.open(name="named")
                ballast = fill(home)
                until_full(lambda n: aios.send("test", "x" * 60_000))
                with pytest.raises(DiskFull):
                    aios.open()
                assert aios.wait(ends, timeout=10).result == "the result"
                assert aios.recv().body == "x" * 60_000
                named.close(forget=True)
                with connect(home, "another") as another:  # who comes now can still end something
                    another.kill(waits, "KILL")
                assert aios.wait(waits, timeout=10).reason == "signal KILL"
                assert aios.check() == []
                ballast.unlink()
                eventually(lambda: is_served(aios))
                assert aios.check() == []


def test_who_runs_an_agent_hears_that_its_output_is_lost(
    homes: Path, program: Callable[[str], str]
) -> None:
    path = program("print('x' * 7_999_999)\nreturn 'the result'")
    with small_disk(homes / "fp", 96 << 20) as home:
        for _ in run_system(home, {"slots": 1, "ctx": 256}):
            ballast = fill(home)
            os.truncate(ballast, ballast.stat().st_size - (4 << 20))
            done = commands.run(home, "run", path)
            assert done.returncode == 1
            assert done.stdout.endswith("the result\n")
            [lost] = re.findall(r"ended with code 0: exit; ([\d,]+) bytes that it", done.stderr)
            assert int(lost.replace(",", "")) == 8_000_000 - done.stdout.count("x")
            told = json.loads(commands.run(home, "run", path, "--json").stdout)
            assert told["output_lost"] > 4_000_000
            ballast.unlink()
            done = commands.run(home, "run", path)
            assert (done.returncode, done.stderr) == (0, "")


def is_served(aios: Aios) -> bool:
    try:
        aios.send("test", "there is room again")
    except DiskFull:
        return False
    return True


def test_a_home_without_room_says_so(homes: Path) -> None:
    with small_disk(homes / "fn", 1 << 20) as home:
        fill(home)
        system = System(home, {"slots": 1, "ctx": 256}, detach=True)
        with pytest.raises(DiskFull, match="the disk of"):
            system.ready()
