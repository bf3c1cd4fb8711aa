"""The store while 16 writers write to it: the kernel killed, the power cut. All that was
acknowledged is there, and no put is there by half."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from conftest import Boot, eventually, run_system

from aios.agents import connect
from aios.kernel.config import Config
from aios.kernel.init.keyring import KeyRequest, unlock
from aios.kernel.lib.encryption import AeadCodec, ChecksumCodec, ValueCodec
from aios.kernel.memory.rows import OwnerRow
from aios.kernel.store.store import Store
from aios.kernel.store.transaction import Txn
from aios.shell.launch import System
from aios.syscalls.errors import AiosError, StoreFull

WRITERS = 16
KEYS = 40  # that each writer puts again and again
FLYING = 4  # puts of one writer on their way
IMAGE = 128 << 20

Found = dict[int, dict[str, list[int]]]  # by pid: the values


class Writer(threading.Thread):
    """Puts (a, b) pairs with a rising number in both, in one call."""

    def __init__(self, home: Path, number: int) -> None:
        super().__init__(daemon=True)
        self.home, self.number = home, number
        self.pid = 0
        self.asked: dict[int, int] = {}  # by key: the last number
        self.acknowledged: dict[int, int] = {}
        self.going = True
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with connect(self.home, f"writer{self.number}") as aios:
                self.pid = aios.pid
                flying: list[tuple[int, Any]] = []
                number = 0
                while self.going:
                    key = number % KEYS
                    self.asked[key] = number
                    pair = {f"a{key}": [number] * 20, f"b{key}": [number] * 20}
                    flying.append((number, aios.start("mem.put", items=pair)))
                    number += 1
                    if len(flying) == FLYING:
                        before, call = flying.pop(0)
                        call.wait()
                        self.acknowledged[before % KEYS] = before
        except BaseException as error:  # noqa: BLE001 (told by the test, whose thread this is not)
            self.error = error


@contextmanager
def writers(home: Path) -> Iterator[list[Writer]]:
    crowd = [Writer(home, number) for number in range(WRITERS)]
    for writer in crowd:
        writer.start()
    try:
        eventually(lambda: all(len(writer.acknowledged) == KEYS for writer in crowd))
        yield crowd
        for writer in crowd:
            assert writer.error is None, writer.error
    finally:
        for writer in crowd:
            writer.going = False
        for writer in crowd:
            writer.join(60)
            assert not writer.is_alive()


def wrong(crowd: list[Writer], acknowledged: list[dict[int, int]], found: Found) -> list[str]:
    """Puts that are lost, older than they should be, or half there."""
    problems = []
    for writer, known in zip(crowd, acknowledged, strict=True):
        mine = found.get(writer.pid, {})
        for key, number in known.items():
            a, b = mine.get(f"a{key}", [-1]), mine.get(f"b{key}", [-1])
            if a != b or len(set(a)) != 1:
                problems.append(f"writer {writer.pid}, key {key}: half, {a[:2]} and {b[:2]}")
            elif not number <= a[0] <= writer.asked[key]:
                problems.append(f"writer {writer.pid}, key {key}: {a[0]}, {number} acknowledged")
    return problems


@pytest.mark.faults
@pytest.mark.parametrize("encrypt", [False, True])
def test_the_kernel_killed_while_16_write(
    boot: Boot, full: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, encrypt: bool
) -> None:
    rng = random.Random(11)
    kills = (200 if full else 8) // (1 + 3 * encrypt)
    settings = sealed(tmp_path) if encrypt else {}
    system = boot(slots=1, ctx=256, mem_resident=0, **settings)  # reads come from the disk
    with writers(system.home) as crowd, connect(system.home, "test") as aios:
        for _ in range(kills):
            time.sleep(rng.random() * 0.2)  # a random moment is the point here
            acknowledged = [dict(writer.acknowledged) for writer in crowd]
            os.kill(aios.status().os_pid, signal.SIGKILL)
            found = {writer.pid: dict(aios.mem_items(pid=writer.pid)) for writer in crowd}
            assert wrong(crowd, acknowledged, found) == []
            assert aios.check() == []
        puts = sum(max(writer.acknowledged.values()) for writer in crowd)
    with capsys.disabled():
        print(f"\n{kills} kills of the kernel, {puts} puts acknowledged: nothing lost or half")


# --- the power ------------------------------------------------------------------------------------


class Disk:
    """A file system of its own in the file `path`, mounted at `at` while it is used.

    The file has what the block device was given: what was written and not synced is in the page
    cache of the file system, and in no copy. Where nothing may be mounted `at` is a folder, whose
    copy has all that was written.
    """

    def __init__(self, folder: Path, name: str, *, mounts: bool) -> None:
        self.path, self.at = folder / f"{name}.img", folder / name
        self.mounts = mounts
        self.at.mkdir()

    def make(self, size: int = IMAGE) -> None:
        with self.path.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self.path)], check=True)

    def __enter__(self) -> Path:
        if self.mounts:
            subprocess.run(["mount", "-o", "loop", str(self.path), str(self.at)], check=True)
        return self.at

    def __exit__(self, *_: object) -> None:
        if self.mounts:
            subprocess.run(["umount", str(self.at)], check=True)

    def become(self, other: Disk) -> None:
        if self.mounts:
            copy = ["cp", "--sparse=always", str(other.path), str(self.path)]
            subprocess.run(copy, check=True)
        else:
            shutil.rmtree(self.at)
            shutil.copytree(other.at, self.at)


def can_mount(folder: Path) -> bool:
    try:
        disk = Disk(folder, "try", mounts=True)
        disk.make()
        with disk:
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False


def cut(system_pid: int, crowd: list[Writer], copy: Callable[[], None]) -> list[dict[int, int]]:
    """Freeze the kernel, and with it all that is acknowledged; copy; go on."""
    os.kill(system_pid, signal.SIGSTOP)
    try:
        eventually(lambda: psutil.Process(system_pid).status() == psutil.STATUS_STOPPED)
        acknowledged = [dict(writer.acknowledged) for writer in crowd]
        copy()
    finally:
        os.kill(system_pid, signal.SIGCONT)
    return acknowledged


def sealed(folder: Path) -> dict[str, Any]:
    """Settings of a home that is encrypted."""
    path = folder / "key"
    path.write_bytes(b"a key of this test")
    return {"encrypt": True, "key_file": str(path)}


def codec_of(home: Path, settings: dict[str, Any]) -> ValueCodec:
    if not settings:
        return ChecksumCodec()
    return AeadCodec(unlock(Config(home=str(home), **settings), KeyRequest()))


def content(folder: Path, codec: ValueCodec) -> Found:
    """Return what a kernel that starts there would find."""
    store = Store(folder, lambda run: run(), codec=codec)
    try:

        def do(txn: Txn) -> Found:
            pids = {
                key[1:]: msgspec.msgpack.decode(data, type=OwnerRow).pid
                for key, data in txn.scan("memory", b"o")
            }
            found: Found = {pid: {} for pid in pids.values()}
            for key, data in txn.scan("memory", b"k"):
                found[pids[key[1:9]]][key[13:].decode()] = msgspec.msgpack.decode(data)
            return found

        found: Found = store.read(do)
        return found
    finally:
        store.close()


@contextmanager
def on_disk(home: Path, at: Path, **settings: Any) -> Iterator[System]:
    """A system in `home`, whose store is below `at`."""
    home.mkdir()
    (at / "store").mkdir()
    (home / "store").symlink_to(at / "store")
    yield from run_system(home, {"slots": 1, "ctx": 256, **settings})


def campaign(folder: Path, cuts: int, *, mounts: bool, **settings: Any) -> list[str]:
    """Run a system whose store is in an image of its own; what was wrong after each cut."""
    problems: list[str] = []
    rng = random.Random(12)
    home = folder / "home"
    disk, copy = Disk(folder, "disk", mounts=mounts), Disk(folder, "copy", mounts=mounts)
    if mounts:
        disk.make()
    with (
        disk,
        on_disk(home, disk.at, **settings) as system,
        writers(system.home) as crowd,
        connect(system.home, "test") as aios,
    ):
        codec = codec_of(home, settings)
        for _ in range(cuts):
            time.sleep(rng.random() * 0.3)  # a random moment is the point here
            acknowledged = cut(aios.status().os_pid, crowd, partial(copy.become, disk))
            with copy as there:
                try:
                    problems += wrong(crowd, acknowledged, content(there / "store", codec))
                except AiosError as error:
                    problems.append(str(error))
    return problems


WITHOUT_SYNC = """
import lmdb
real = lmdb.open
lmdb.open = lambda *args, **options: real(*args, **options, sync=False)
"""


@pytest.mark.faults
def test_the_power_cut_while_16_write(
    homes: Path, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of the disk is what is left; without the sync of a commit that shows."""
    folders = [homes / name for name in ("t", "cut", "nosync", "seal")]
    for folder in folders:
        folder.mkdir()
    mounts = can_mount(folders[0])
    assert campaign(folders[1], 50 if full else 4, mounts=mounts) == []
    assert campaign(folders[3], 10 if full else 2, mounts=mounts, **sealed(folders[3])) == []
    (folders[2] / "sitecustomize.py").write_text(WITHOUT_SYNC)
    path = os.pathsep.join([str(folders[2]), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    assert (campaign(folders[2], 3, mounts=mounts) != []) == mounts


# --- no room --------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_full_store_loses_nothing_and_is_told(boot: Boot) -> None:
    """A full disk is in test_full_disk.py."""
    kept: list[str] = []
    system = boot(slots=1, ctx=256, store_bytes=1 << 25, mem_resident=0)
    with connect(system.home, "test") as aios:
        with pytest.raises(StoreFull):
            while True:
                aios.mem_put({f"k{len(kept)}": "x" * 60_000})
                kept.append(f"k{len(kept)}")
        assert len(kept) > 100
        assert all(len(value) == 60_000 for value in aios.mem_get(kept).values())
        assert len(aios.mem_get(kept)) == len(kept)
        with pytest.raises(StoreFull):
            aios.mem_put({"k0": "y", **{f"n{n}": "x" * 20_000 for n in range(3)}})
        assert aios.mem_get(["k0", "n0"]) == {"k0": "x" * 60_000}
        os.kill(aios.status().os_pid, signal.SIGKILL)  # another kernel finds all of it
        assert {key for key, _ in aios.mem_items()} == set(kept)
        assert aios.mem_delete(kept[1:40]) == 39
        aios.mem_put({"new": 1})
        assert aios.mem_get(["new", "k1", "k40"]) == {"new": 1, "k40": "x" * 60_000}
        assert aios.check() == []
