"""The store: transactions that hold or leave nothing, what is acknowledged, damage, full disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from conftest import fewer
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from store_loop import LIMIT, Loop
from waits import hear

from aios.kernel.lib.encryption import AeadCodec, ChecksumCodec, KeyRing, ValueCodec
from aios.kernel.store import done_calls
from aios.kernel.store import store as module
from aios.kernel.store.done_calls import MAX_RESULTS, CallId
from aios.kernel.store.file_space import RESERVED_BYTES
from aios.kernel.store.probe import try_store
from aios.kernel.store.store import Store
from aios.kernel.store.transaction import Txn
from aios.syscalls.errors import (
    BadInput,
    Conflict,
    DiskFull,
    HomeBusy,
    Internal,
    OutOfOrder,
    StoreDamaged,
    StoreFull,
)


class Opened:
    """A store, and its calls as if they returned at once."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.loop = Loop()
        self.store = Store(folder, self.loop.posted.put, **options)

    def write(self, *jobs: Callable[[Txn], Any], **options: Any) -> list[Any]:
        """Results or errors, of all, asked for at once."""
        answers: list[Any] = []
        for job in jobs:
            hear(self.store.write(job, **options), answers.append)
        return self.loop.wait(answers, len(jobs))

    def put(self, key: bytes, value: bytes) -> Any:
        return self.write(lambda txn: txn.put("memory", key, value), size=len(value))[0]

    def get(self, key: bytes) -> Any:
        return self.store.read(lambda txn: txn.get("memory", key))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path / "store")
    yield opened
    opened.store.close()


def fail(txn: Txn) -> None:
    txn.put("memory", b"half", b"of it")
    raise Conflict("no")


def test_what_raises_leaves_nothing_and_harms_nobody_in_its_group(opened: Opened) -> None:
    block = threading.Event()
    answers: list[Any] = []
    before = opened.store.commits
    hear(opened.store.write(lambda _: block.wait(LIMIT)), answers.append)
    for do in (
        lambda txn: txn.put("memory", b"a", b"1"),
        fail,
        lambda txn: txn.get("memory", b"a"),
    ):
        hear(opened.store.write(do), answers.append)
    block.set()
    opened.loop.wait(answers, 4)
    assert answers[1] is None
    assert isinstance(answers[2], Conflict)
    assert answers[3] == b"1"
    assert opened.get(b"half") is None
    assert opened.store.commits - before <= 2  # those that waited went together


def test_a_defect_is_told_and_the_store_goes_on(
    opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(opened.write(lambda _: 1 // 0)[0], Internal)
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert opened.put(b"a", b"1") is None


def test_keys_that_it_cannot_hold(opened: Opened) -> None:
    long = opened.write(lambda txn: txn.put("memory", b"k" * 512, b""))[0]
    none = opened.write(lambda txn: txn.put("memory", b"", b""))[0]
    assert isinstance(long, BadInput)
    assert isinstance(none, BadInput)


def test_scan(opened: Opened) -> None:
    def fill(txn: Txn) -> None:
        for key in (b"a", b"b1", b"b2", b"b\xff", b"c"):
            txn.put("memory", key, key + b"!")

    opened.write(fill)

    def keys(prefix: bytes, start: bytes = b"", *, back: bool = False) -> list[bytes]:
        found: list[bytes] = opened.store.read(
            lambda txn: [key for key, _ in txn.scan("memory", prefix, start, back=back)]
        )
        return found

    assert keys(b"") == [b"a", b"b1", b"b2", b"b\xff", b"c"]
    assert keys(b"b") == [b"b1", b"b2", b"b\xff"]
    assert keys(b"b", b"b2") == [b"b2", b"b\xff"]
    assert keys(b"b", back=True) == [b"b\xff", b"b2", b"b1"]
    assert keys(b"b", b"b2", back=True) == [b"b1"]
    assert keys(b"c", back=True) == [b"c"]
    assert keys(b"d") == keys(b"d", back=True) == []


def test_reads_that_failed_hold_nothing(opened: Opened) -> None:
    """LMDB has few slots for those who read."""
    kept = []
    for _ in range(50):
        with pytest.raises(Conflict) as raised:
            opened.store.read(fail_to_read)
        kept.append(raised.value)
    assert opened.get(b"none") is None


def fail_to_read(txn: Txn) -> None:
    keys = txn.keys("memory", b"")
    assert list(keys) == []
    raise Conflict("no")


# --- once -----------------------------------------------------------------------------------------


def known(pid: int, number: int, name: str = "sto.put") -> CallId:
    return CallId(pid, number, name)


def test_a_call_that_comes_again_is_done_once(tmp_path: Path) -> None:
    def count(txn: Txn) -> int:
        number = int(txn.get("memory", b"n") or b"0") + 1
        txn.put("memory", b"n", b"%d" % number)
        return number

    opened = Opened(tmp_path, system="one")
    assert opened.write(count, once=known(3, 7)) == opened.write(count, once=known(3, 7)) == [1]
    opened.store.close()
    opened = Opened(tmp_path, system="one")  # the kernel was killed
    assert opened.write(count, once=known(3, 7)) == [1]
    assert opened.write(count, once=known(3, 8)) == [2]
    assert opened.write(count, once=known(3, 7 + MAX_RESULTS)) == [3]  # by then 7 is forgotten
    assert opened.write(count, once=known(3, 7)) == [4]
    opened.store.close()
    opened = Opened(tmp_path, system="two")  # pids begin anew
    assert opened.write(count, once=known(3, 8)) == [5]
    opened.store.close()


def remembered(opened: Opened) -> int:
    found: int = opened.store.read(lambda txn: sum(1 for _ in txn.keys("done", b"")))
    return found


def test_no_more_calls_are_remembered_than_a_caller_may_repeat(opened: Opened) -> None:
    """Also where most of its calls are others, and until it ends."""
    for call in (1, 2, 500, 501, MAX_RESULTS + 1, MAX_RESULTS + 600, 9000):
        assert opened.write(lambda _: "done", once=known(3, call)) == ["done"]
        opened.write(lambda _: "done", once=known(4, 1))
    assert remembered(opened) == 2
    assert opened.write(lambda _: "again", once=known(3, 9000)) == ["done"]
    opened.store.forget(3)
    opened.store.forget(5)
    assert opened.write(lambda _: "again", once=known(3, 9000)) == ["again"]
    opened.store.forget(3)
    opened.store.forget(4)
    opened.write(lambda _: None)
    assert remembered(opened) == 0


def test_another_call_of_that_number_is_refused(opened: Opened) -> None:
    assert opened.write(lambda _: 1, once=known(3, 7, "mem.delete")) == [1]
    error = opened.write(lambda _: [], once=known(3, 7))[0]
    assert isinstance(error, OutOfOrder)
    assert error.message == "call 7 was mem.delete"


def test_what_is_remembered_has_a_bound_in_bytes_whatever_the_numbers(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that counts down, one whose numbers are far apart, many that have a little each."""
    monkeypatch.setattr(done_calls, "MAX_BYTES", 100_000)
    monkeypatch.setattr(done_calls, "MAX_ALL_BYTES", 300_000)
    for number in range(50):
        opened.write(lambda _: "x" * 9_000, once=known(1, 2**40 - number))
        opened.write(lambda _: "x" * 9_000, once=known(2, 2**40 + number * 10))
        assert opened.write(lambda _: "done", once=known(3, number + 1)) == ["done"]
    assert 20 < remembered(opened) - 50 < 24
    for pid in range(4, 20):
        for number in range(1, 6):
            opened.write(lambda _: "x" * 9_000, once=known(pid, number))
    assert remembered(opened) - 50 < 34
    assert opened.write(lambda _: "again", once=known(3, 1)) == ["done"]
    assert opened.write(lambda _: "again", once=known(19, 5)) != ["again"]


def test_a_result_that_is_larger_than_the_bound_is_remembered_alone(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(done_calls, "MAX_BYTES", 100)
    for number in (1, 2):
        opened.write(lambda _: "x" * 1000, once=known(3, number))
        assert opened.write(lambda _: "again", once=known(3, number)) == ["x" * 1000]
    assert remembered(opened) == 1


def test_what_is_counted_as_remembered_follows_a_commit_that_failed(opened: Opened) -> None:
    def full(_txn: Txn) -> None:
        raise lmdb.MapFullError("no room")

    block = threading.Event()
    answers: list[Any] = []
    hear(opened.store.write(lambda _: block.wait(LIMIT)), answers.append)
    hear(opened.store.write(lambda _: "done", once=known(3, 1)), answers.append)
    hear(opened.store.write(full), answers.append)
    block.set()
    opened.loop.wait(answers, 3)
    assert isinstance(answers[2], StoreFull)
    assert (remembered(opened), opened.store.done.counts) == (1, {3: 1})
    opened.store.forget(3)
    opened.write(lambda _: None)
    assert (opened.store.done.counts, opened.store.done.bytes) == ({}, {})


def test_a_call_that_failed_is_tried_again(opened: Opened) -> None:
    assert isinstance(opened.write(fail, once=known(1, 1))[0], Conflict)
    assert opened.write(lambda _: "done", once=known(1, 1)) == ["done"]


# --- the file -------------------------------------------------------------------------------------


def test_the_file_is_extended_ahead_of_what_is_written(opened: Opened) -> None:
    for number in range(6):
        assert opened.put(b"%d" % number, b"x" * (4 << 20)) is None
    assert opened.write(lambda _: opened.store.space.unused() >= RESERVED_BYTES) == [True]
    assert opened.store.path.stat().st_blocks * 512 >= opened.store.space.size - (
        1 << 20
    )  # no holes


def test_two_kernels_cannot_have_one_store(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    with pytest.raises(HomeBusy):
        Opened(tmp_path)
    opened.store.close()
    Opened(tmp_path).store.close()


def test_a_full_store_refuses_and_reads_on(tmp_path: Path) -> None:
    opened = Opened(tmp_path, limit=1 << 25)
    kept = 0
    while (answer := opened.put(b"%d" % kept, b"x" * (1 << 20))) is None:
        kept += 1
    assert isinstance(answer, StoreFull)
    assert 20 < kept < 32
    assert len(opened.get(b"0")) == 1 << 20
    assert opened.write(lambda txn: txn.delete("memory", b"0")) == [True]
    assert opened.write(lambda txn: txn.delete("memory", b"1")) == [True]
    assert opened.put(b"small", b"x") is None
    opened.store.close()


READER = """
import lmdb, sys
env = lmdb.open(sys.argv[1])
txn = env.begin()
print("reads", flush=True)
sys.stdin.read()
"""


def test_a_reader_that_was_killed_holds_no_room(tmp_path: Path) -> None:
    """Another program that looked at the store: what it could see is not used again before it is
    known to be gone."""
    opened = Opened(tmp_path, limit=1 << 25)
    assert opened.put(b"first", b"x") is None
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reads\n"
        reader.kill()
    for number in range(200):  # each in place of the one before
        assert opened.put(b"same", b"%d" % number * (1 << 18)) is None
    opened.store.close()


def test_of_a_group_that_does_not_fit_the_rest_is_written(tmp_path: Path) -> None:
    opened = Opened(tmp_path, limit=1 << 25)

    def put(key: bytes, size: int) -> Callable[[Txn], None]:
        return lambda txn: txn.put("memory", key, b"x" * size)

    block = threading.Event()
    answers: list[Any] = []
    hear(opened.store.write(lambda _: block.wait(LIMIT)), answers.append)
    for key, size in ((b"a", 100), (b"b", 1 << 26), (b"c", 100)):
        hear(opened.store.write(put(key, size)), answers.append)
    block.set()
    opened.loop.wait(answers, 4)
    assert [type(answer) for answer in answers] == [bool, type(None), StoreFull, type(None)]
    assert len(opened.get(b"a")) == len(opened.get(b"c")) == 100
    opened.store.close()


def test_a_full_disk_refuses_what_grows_and_lets_delete(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for what extends the file; LMDB writes within it."""
    real = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    answers = [opened.put(b"%d" % number, b"x" * (1 << 20)) for number in range(12)]
    assert answers[0] is None
    assert isinstance(answers[-1], DiskFull)
    size = opened.store.path.stat().st_size
    assert size == opened.store.space.size
    assert opened.get(b"0") is not None
    assert opened.write(lambda txn: txn.delete("memory", b"0")) == [True]
    monkeypatch.setattr(os, "pwrite", real)
    assert isinstance(opened.put(b"again", b"x" * (1 << 20)), DiskFull | None)
    assert opened.put(b"again", b"x" * (1 << 20)) is None


def test_after_a_sync_that_failed_nothing_is_written(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened.put(b"a", b"1") is None

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(env, name)

        def begin(self, **options: Any) -> Any:
            if options.get("write"):
                raise lmdb.Error("mdb_txn_commit: Input/output error")
            return env.begin(**options)

    env = opened.store.env
    monkeypatch.setattr(opened.store, "env", Broken())
    assert isinstance(opened.put(b"b", b"2"), StoreDamaged)
    monkeypatch.setattr(opened.store, "env", env)
    assert isinstance(opened.put(b"b", b"2"), StoreDamaged)
    assert opened.get(b"a") == b"1"


# --- damage ---------------------------------------------------------------------------------------


def filled(folder: Path) -> Path:
    opened = Opened(folder)
    for number in range(20):
        opened.put(b"key %d" % number, b"value %d " % number * 100)
    opened.store.close()
    return opened.store.path


def test_a_changed_value_is_found_out(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = path.read_bytes()
    at = data.rindex(b"value 7 value 7")
    path.write_bytes(data[:at] + b"V" + data[at + 1 :])
    opened = Opened(tmp_path)
    with pytest.raises(StoreDamaged, match="key 7"):
        opened.get(b"key 7")
    assert opened.get(b"key 8") == b"value 8 " * 100
    opened.store.close()


@pytest.mark.parametrize("left", [100, 4096, 5000, 8192, 40_000])
def test_a_file_cut_short_is_refused(left: int, tmp_path: Path) -> None:
    os.truncate(filled(tmp_path), left)
    with pytest.raises(StoreDamaged) as refused:
        Opened(tmp_path)
    assert "backup" in refused.value.hint
    with pytest.raises(StoreDamaged):  # the lock was let go
        Opened(tmp_path)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(StoreDamaged):
        Opened(tmp_path)
    (tmp_path / "file").write_text("where the folder should be")
    with pytest.raises(StoreDamaged, match="cannot open the store"):
        Opened(tmp_path / "file")


def test_what_reading_would_crash_is_found_by_another_process(tmp_path: Path) -> None:
    """LMDB ends the process that meets a page of a wrong kind."""
    try_store(tmp_path)  # there is none yet
    path = filled(tmp_path)
    try_store(tmp_path)
    data = bytearray(path.read_bytes())
    leaf = data.index(b"value 7 value 7") // 4096 * 4096
    data[leaf : leaf + 4096] = bytes(4096)
    path.write_bytes(data)
    with pytest.raises(StoreDamaged, match="cannot be read") as refused:
        try_store(tmp_path)
    assert "backup" in refused.value.hint


def test_a_store_of_a_later_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORMAT", 2)
    filled(tmp_path)
    monkeypatch.setattr(module, "FORMAT", 1)
    data = (tmp_path / "data.mdb").read_bytes()
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="format 2"):
            Opened(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == data


def test_a_backup_while_running_is_a_store(opened: Opened, tmp_path: Path) -> None:
    opened.put(b"a", b"1")
    with opened.store.backup(tmp_path / "backup"):
        pass
    opened.put(b"a", b"2")
    copy = Opened(tmp_path / "backup")
    assert copy.get(b"a") == b"1"
    assert copy.put(b"b", b"3") is None
    copy.store.close()


# --- crashes --------------------------------------------------------------------------------------

RING = bytes(range(32)).hex()
KEEPERS: list[ValueCodec] = [
    ChecksumCodec(),
    AeadCodec(KeyRing({b"ring": bytes.fromhex(RING)}, b"ring")),
]
WRITER = """
import os, sys
from pathlib import Path
from aios.kernel.lib.coroutine import Driver
from aios.kernel.store.store import Store
from aios.kernel.lib.encryption import ChecksumCodec, KeyRing, AeadCodec
codec = AeadCodec(KeyRing({b"ring": bytes.fromhex(sys.argv[3])}, b"ring")) if sys.argv[3:] else None
store = Store(Path(sys.argv[1]), lambda run: run(), codec=codec or ChecksumCodec())
def put(number):
    def do(txn):
        for half in (b"a", b"b"):
            txn.put("memory", half + b"%d" % number, b"%d" % number * 50)
    return do
number = int(sys.argv[2])
while True:
    os.read(0, 1)
    for _ in range(20):
        line = b"%d\\n" % number
        work = store.write(put(number), size=100)
        Driver(work, lambda _, line=line: os.write(1, line), print).go_on()
        number += 1
"""


@pytest.mark.parametrize("codec", KEEPERS)
def test_kill_loses_nothing_that_was_acknowledged(tmp_path: Path, codec: ValueCodec) -> None:
    acknowledged: list[int] = []
    for round_ in range(4):
        first = 1000 * round_
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(first), RING]
        command = command[: 5 + isinstance(codec, AeadCodec)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write(b"xxx")
            data = b""
            while data.count(b"\n") < 10 * (round_ + 1):
                data += os.read(writer.stdout.fileno(), 1 << 16)
            writer.send_signal(signal.SIGKILL)
            data += writer.stdout.read()
        acknowledged += map(int, data.split(b"\n")[:-1])
        opened = Opened(tmp_path, codec=codec)
        for number in acknowledged:
            assert opened.get(b"a%d" % number) == opened.get(b"b%d" % number) == b"%d" % number * 50
        halves = opened.store.read(
            lambda txn: [{key[1:] for key, _ in txn.scan("memory", half)} for half in (b"a", b"b")]
        )
        assert halves[0] == halves[1]
        opened.store.close()


class Machine(RuleBasedStateMachine):
    """Against a dict; the store is closed and opened, and its file as it is at any moment, with
    what no reply has come for yet, opened as after a power cut."""

    codec: ValueCodec = ChecksumCodec()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.opened = Opened(self.folder / "0", codec=self.codec)
        self.model: dict[bytes, bytes] = {}
        self.count = 0

    keys = st.sampled_from([b"a", b"b", b"c" * 400, b"\x00", b"\xff"])
    values = st.sampled_from([b"", b"1", b"x" * 300, b"y" * 9000])

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        assert self.opened.put(key, value) is None
        self.model[key] = value

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        found = self.opened.write(lambda txn: txn.delete("memory", key))
        assert found == [self.model.pop(key, None) is not None]

    @rule(changes=st.dictionaries(keys, values), fails=st.booleans())
    def batch(self, changes: dict[bytes, bytes], *, fails: bool) -> None:
        def do(txn: Txn) -> None:
            for key, value in changes.items():
                txn.put("memory", key, value)
            if fails:
                raise Conflict("no")

        assert isinstance(self.opened.write(do)[0], Conflict if fails else type(None))
        if not fails:
            self.model |= changes

    @rule()
    def reopen(self) -> None:
        self.opened.store.close()
        self.opened = Opened(self.opened.store.folder, codec=self.codec)

    @rule(key=keys, value=values)
    def crash(self, key: bytes, value: bytes) -> None:
        """The file is copied while a write may be on its way: it is there, or it is not."""
        answers: list[Any] = []
        hear(self.opened.store.write(lambda txn: txn.put("memory", key, value)), answers.append)
        self.count += 1
        copy = self.folder / str(self.count)
        copy.mkdir()
        shutil.copy(self.opened.store.path, copy)
        self.opened.loop.wait(answers, 1)
        self.opened.store.close()
        self.opened = Opened(copy, codec=self.codec)
        if self.opened.get(key) == value:
            self.model[key] = value

    @invariant()
    def it_holds_the_model(self) -> None:
        held = self.opened.store.read(lambda txn: dict(txn.scan("memory", b"")))
        assert held == self.model

    def teardown(self) -> None:
        self.opened.store.close()
        shutil.rmtree(self.folder)


Machine.TestCase.settings = fewer(4)
TestMachine = Machine.TestCase


class SealedMachine(Machine):
    codec: ValueCodec = KEEPERS[1]


SealedMachine.TestCase.settings = fewer(10)
TestSealedMachine = SealedMachine.TestCase
