"""Every place of contents does the same: in the store, in a folder, in a bucket of a real server
that speaks S3."""

from __future__ import annotations

import errno
import os
import queue
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bucket import bucket_at
from waits import hear

from aios.kernel.storage import blobs as module
from aios.kernel.storage.backends import BucketBackend, FolderBackend
from aios.kernel.storage.blobs import Blobs, ExternalBlobs, LmdbBlobs, open_blobs
from aios.kernel.storage.catalog import KEY_BYTES
from aios.kernel.store.done_calls import CallId
from aios.kernel.store.store import Store
from aios.kernel.store.transaction import Txn
from aios.syscalls.errors import AiosError, BackendDown, BadInput, Conflict, DiskFull, StoreDamaged

LIMIT = 30.0  # seconds
NOWHERE = {"endpoint": "http://127.0.0.1:1", "region": "x", "skip_signature": "true"}
KEYS = [bytes([number]) * KEY_BYTES for number in range(8)]


class Opened:
    """A store with blobs, and calls of the loop as if they returned at once."""

    def __init__(self, folder: Path, make: Callable[[Store, Any], Blobs]) -> None:
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.store = Store(folder, self.posted.put)
        self.blobs = make(self.store, self.posted.put)

    def turn(self, ready: Callable[[], Any]) -> None:
        limit = time.monotonic() + LIMIT
        while not ready():
            assert time.monotonic() < limit
            self.posted.get(timeout=LIMIT)()

    def write(self, chunks: dict[bytes, bytes], do: Any = None, **options: Any) -> Any:
        answers: list[Any] = []
        do = do or (lambda txn, _drop: refer(txn, chunks))
        hear(self.blobs.write(chunks, do, **options), answers.append)
        self.turn(lambda: answers)
        return answers[0]

    def read(self, *keys: bytes) -> Any:
        answers: list[Any] = []
        hear(self.blobs.read(list(keys)), answers.append)
        self.turn(lambda: answers)
        return answers[0]

    def put_there(self, key: bytes, data: bytes) -> AiosError | None:
        """Into the place itself."""
        assert isinstance(self.blobs, ExternalBlobs)
        try:
            self.blobs.backend.put(key.hex(), data)
        except AiosError as error:
            return error
        return None

    def drop(self, *keys: bytes) -> None:
        def do(txn: Txn, drop: Callable[[bytes], None]) -> None:
            for key in keys:
                txn.delete("catalog", b"c" + key)
                drop(key)

        assert self.write({}, do) is None

    def settle(self) -> None:
        """Until a place elsewhere has done what it was asked for."""
        if isinstance(self.blobs, ExternalBlobs):
            done = self.blobs.writer.submit(lambda: self.posted.put(lambda: None))
            self.turn(done.done)

    def close(self) -> None:
        self.blobs.close()
        self.store.close()


def refer(txn: Txn, chunks: dict[bytes, bytes]) -> None:
    for key in chunks:
        txn.put("catalog", b"c" + key, b"")


def referred(chunks: dict[bytes, bytes], txn: Txn, _drop: Callable[[bytes], None]) -> None:
    refer(txn, chunks)


def all_there(answers: list[Any], count: int) -> bool:
    return len(answers) == count


@pytest.fixture(params=["lmdb", "folder", "bucket"])
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Opened]:
    url, options = "lmdb", {}
    if request.param == "folder":
        url = f"file://{tmp_path}/blobs"
    elif request.param == "bucket":
        name = f"b{abs(hash(request.node.nodeid))}"
        options = bucket_at(request.getfixturevalue("server"), name, monkeypatch)
        url = f"s3://{name}/below"
    opened = Opened(tmp_path / "store", lambda store, post: open_blobs(url, options, store, post))
    yield opened
    opened.close()


# --- what all of them do --------------------------------------------------------------------------


def test_put_and_get(opened: Opened) -> None:
    chunks = {KEYS[0]: b"one", KEYS[1]: b"\x00\xff" * 1000}
    assert opened.write(chunks, once=CallId(1, 1, "sto.put")) is None
    assert opened.read(KEYS[1], KEYS[0]) == [chunks[KEYS[1]], b"one"]
    assert opened.read() == []
    assert opened.blobs.load(KEYS[0]) == b"one"


def test_what_is_missing_is_said(opened: Opened) -> None:
    opened.write({KEYS[0]: b"one"})
    answer = opened.read(KEYS[0], KEYS[1])
    assert isinstance(answer, StoreDamaged)
    assert KEYS[1].hex() in answer.message


def test_the_same_again(opened: Opened) -> None:
    for _ in range(3):
        assert opened.write({KEYS[0]: b"one"}) is None
    assert opened.read(KEYS[0]) == [b"one"]
    assert list(opened.blobs.all()) == [KEYS[0]]


def test_a_large_chunk(opened: Opened) -> None:
    data = os.urandom(1 << 20)
    opened.write({KEYS[0]: data})
    assert opened.read(KEYS[0]) == [data]


def test_all_are_listed(opened: Opened) -> None:
    assert list(opened.blobs.all()) == []
    many = {bytes([number % 256, number // 256]) * 8: b"%d" % number for number in range(1100)}
    if isinstance(opened.blobs, ExternalBlobs):
        many = dict(list(many.items())[:300])
    opened.write(many)
    assert sorted(opened.blobs.all()) == sorted(many)


def test_what_is_dropped_goes(opened: Opened) -> None:
    opened.write({KEYS[0]: b"one", KEYS[1]: b"two"})
    opened.drop(KEYS[0], KEYS[2])  # one of them was never there
    opened.settle()
    assert list(opened.blobs.all()) == [KEYS[1]]
    assert isinstance(opened.read(KEYS[0]), StoreDamaged)


def test_dropped_and_put_again_it_is_there(opened: Opened) -> None:
    """Also where the drop is carried out while the put is on its way."""
    opened.write({KEYS[0]: b"one"})
    for _ in range(20):
        answers: list[Any] = []

        def drop(txn: Txn, drop: Callable[[bytes], None]) -> None:
            txn.delete("catalog", b"c" + KEYS[0])
            drop(KEYS[0])

        def put(txn: Txn, _: Callable[[bytes], None]) -> None:
            refer(txn, {KEYS[0]: b""})

        hear(opened.blobs.write({}, drop), answers.append)
        hear(opened.blobs.write({KEYS[0]: b"one"}, put), answers.append)
        opened.turn(partial(all_there, answers, 2))
        opened.settle()
        assert answers == [None, None]
        assert opened.store.read(lambda txn: txn.get("catalog", b"c" + KEYS[0])) == b""
        assert opened.read(KEYS[0]) == [b"one"]


def test_what_fails_leaves_no_chunk(opened: Opened) -> None:
    def fail(_txn: Txn, _drop: Callable[[bytes], None]) -> None:
        raise Conflict("no")

    assert isinstance(opened.write({KEYS[0]: b"one"}, fail), Conflict)
    opened.settle()
    assert list(opened.blobs.all()) == []


def test_what_fails_takes_no_other_s_chunk(opened: Opened) -> None:
    opened.write({KEYS[0]: b"one"})

    def fail(_txn: Txn, drop: Callable[[bytes], None]) -> None:
        drop(KEYS[0])
        raise Conflict("no")

    assert isinstance(opened.write({KEYS[0]: b"one"}, fail), Conflict)
    opened.settle()
    assert opened.read(KEYS[0]) == [b"one"]


def test_many_at_once(opened: Opened) -> None:
    answers: list[Any] = []
    for number in range(60):
        chunks = {bytes([number]) * KEY_BYTES: b"%d" % number}
        refer_to = partial(referred, chunks)
        hear(opened.blobs.write(chunks, refer_to), answers.append)
    opened.turn(lambda: len(answers) == 60)
    assert answers == [None] * 60
    got: list[Any] = []
    for number in range(60):
        hear(opened.blobs.read([bytes([number]) * KEY_BYTES]), got.append)
    opened.turn(lambda: len(got) == 60)
    assert sorted(data for (data,) in got) == sorted(b"%d" % number for number in range(60))


def test_no_chunk_is_referred_to_before_it_is_durable(opened: Opened) -> None:
    if isinstance(opened.blobs, LmdbBlobs):
        missing = opened.store.read(lambda txn: txn.get("blobs", module.PREFIX + KEYS[0]))
        assert missing is None
    seen: list[bool] = []

    def look(txn: Txn, _: Callable[[bytes], None]) -> None:
        inside = txn.get("blobs", module.PREFIX + KEYS[0]) is not None
        seen.append(inside or KEYS[0] in set(opened.blobs.all()))
        refer(txn, {KEYS[0]: b""})

    opened.write({KEYS[0]: b"one"}, look)
    assert seen == [True]


@pytest.mark.parametrize("opened", ["folder", "bucket"], indirect=True)
def test_what_is_dropped_while_it_is_held_goes_later(opened: Opened) -> None:
    opened.write({KEYS[0]: b"one", KEYS[1]: b"two"})
    opened.blobs.hold()
    opened.drop(KEYS[0], KEYS[1])
    opened.write({KEYS[1]: b"two"})
    opened.settle()
    assert opened.blobs.load(KEYS[0]) == b"one"
    opened.blobs.release()
    opened.settle()
    assert list(opened.blobs.all()) == [KEYS[1]]


def test_what_is_dropped_while_the_system_ends_is_no_trouble(
    opened: Opened, capfd: pytest.CaptureFixture[str]
) -> None:
    opened.write({KEYS[0]: b"one"})
    answers: list[Any] = []

    def drop(txn: Txn, drop: Callable[[bytes], None]) -> None:
        txn.delete("catalog", b"c" + KEYS[0])
        drop(KEYS[0])

    hear(opened.blobs.write({}, drop), answers.append)
    opened.blobs.close()
    opened.turn(lambda: answers)
    assert answers == [None]
    if isinstance(opened.blobs, ExternalBlobs):
        assert "left for `aios sto compact`" in capfd.readouterr().err
        assert list(opened.blobs.all()) == [KEYS[0]]


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", ["folder", "bucket"], indirect=True)
def test_a_backend_that_is_down_is_a_typed_error(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed contents stay as they were."""
    opened.write({KEYS[0]: b"one"})
    assert isinstance(opened.blobs, ExternalBlobs)
    with monkeypatch.context() as broken:
        if isinstance(opened.blobs.backend, FolderBackend):
            gone = opened.blobs.backend.path / "gone"
            broken.setattr(opened.blobs.backend, "path", gone)
            broken.setattr(opened.blobs.backend, "new", gone)
        else:
            broken.setattr(opened.blobs, "backend", BucketBackend("s3://none/x", NOWHERE))
        assert isinstance(opened.write({KEYS[1]: b"two"}), BackendDown)
        opened.drop(KEYS[0])  # of the catalogue; the chunk is left over
        opened.settle()
    assert opened.store.read(lambda txn: txn.get("catalog", b"c" + KEYS[1])) is None
    assert opened.read(KEYS[0]) == [b"one"]


@pytest.mark.parametrize("opened", ["folder"], indirect=True)
def test_a_full_disk_is_a_typed_error(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    opened.write({KEYS[0]: b"one"})
    assert isinstance(opened.blobs, ExternalBlobs)
    assert isinstance(opened.blobs.backend, FolderBackend)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        assert isinstance(opened.put_there(KEYS[1], b"two"), DiskFull)
    assert list(opened.blobs.backend.new.iterdir()) == []
    assert list(opened.blobs.all()) == [KEYS[0]]


def test_a_file_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FolderBackend(tmp_path)
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def sync(file: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        fsync(file)

    def renamed(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", renamed)
    folder.put("ab" * KEY_BYTES, b"data")
    assert steps == ["file", "rename", "folder"]


def test_what_a_crash_left_half_written_is_removed(tmp_path: Path) -> None:
    (FolderBackend(tmp_path).new / "half").write_bytes(b"ha")
    assert list(FolderBackend(tmp_path).new.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    ["", "files", "ftp://x/y", "s3://", "file://host/path", "file:relative", "file:///proc/x"],
)
def test_what_is_no_place_is_refused(url: str, tmp_path: Path) -> None:
    store = Store(tmp_path, lambda run: run())
    with pytest.raises(BadInput):
        open_blobs(url, {}, store, lambda run: run())
    store.close()
