"""The journal: what the kernel must not forget, written before anyone sees what follows from it.

Rows of items by key. `put` makes a row anew, `add` appends an item to it, `delete` drops it; what
was said between two commits is one write, which counts as a whole or not at all. The kernel's
death loses nothing that was committed; the machine's loses nothing that was synced.

A folder holds a base, all rows at one time, and the logs written since. Logs are made ahead, full
of zeros, so a commit cannot run out of disk and a sync has no metadata to write. Once the full logs
hold as many bytes as the base, the journal's own thread folds them into the next base: so all that
is written is at most three times what was committed, however much there is.

Another log is made from where a quarter of this one is used. Meanwhile little is taken in
(`is_waiting`), so that most of the rest is left where it turns out that the disk is full: a third
of it is for what ends something, what is in between for what runs already.
"""

from __future__ import annotations

import os
import queue
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from aios.syscalls.errors import DiskFull, StoreDamaged

from .lib.encryption import Damaged, Seal
from .lib.files import make_ahead, sync_folder

LOG_BYTES = 8 << 20
MARK = 128  # bytes, at least as many as the frame that begins a log
FRAME = struct.Struct("<II")  # length, CRC-32 of what follows
PUT, ADD, DELETE, BEHIND = 0, 1, 2, 3  # BEHIND: how long the log before this one is
Change = tuple[int, str, bytes]
Rows = dict[str, list[bytes]]

_encode = msgspec.msgpack.Encoder().encode
_changes = msgspec.msgpack.Decoder(list[Change]).decode


class Journal:
    """Opens the journal in `folder`; `rows` holds what it found there. `post` runs a function in
    the kernel's loop, called from the journal's thread. `before_sync` runs in that thread: what is
    durable before the rows are.

    Raises:
        DiskFull: there is no room for a log.
        StoreDamaged: it is sealed, and not with this seal, or a sealed frame was moved.
    """

    def __init__(
        self, folder: Path, post: Callable[[Callable[[], None]], None], log_bytes: int = LOG_BYTES,
        seal: Seal | None = None, before_sync: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.folder, self.post, self.log_bytes, self.seal = folder, post, log_bytes, seal
        self.before_sync = before_sync
        self.changes: list[Change] = []
        self.next: int | None = None  # the descriptor of the log that follows, made ahead
        self.asked = False
        self.full = ""  # why no log could be made when that was tried last
        folder.mkdir(mode=0o700, exist_ok=True)
        self.rows, self.number = read(folder, seal=seal)
        try:
            before_sync()
            self.base_bytes = _write_base(folder, self.number + 1, self.rows, seal)
            self.number += 2
            self.log = make_ahead(folder / f"log-{self.number}", log_bytes)
        except OSError as error:
            raise DiskFull(f"no journal in {folder}: {error.strerror}") from error
        _remove_before(folder, self.number - 1)
        self.at = 0
        self.size = log_bytes
        self.reserve = log_bytes * 3 // 4
        self.unfolded = 0  # bytes in full logs that are in no base yet
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    # --- changes --------------------------------------------------------------------------------

    def put(self, key: str, item: bytes) -> None:
        self.changes.append((PUT, key, item))

    def add(self, key: str, item: bytes) -> None:
        self.changes.append((ADD, key, item))

    def delete(self, key: str) -> None:
        self.changes.append((DELETE, key, b""))

    def check_room(self) -> None:
        """Raises DiskFull where nothing new may begin."""
        self._check_room(self.reserve)

    def check_running(self) -> None:
        """Raises DiskFull where nothing may go on but what ends something."""
        self._check_room(self.reserve // 3)

    @property
    def is_waiting(self) -> bool:
        """Whether a log is being made that will soon be needed."""
        return self.asked and not self.full and self.size - self.at < self.reserve

    def _check_room(self, reserve: int) -> None:
        """Raises DiskFull where no log can be made, and less than `reserve` bytes are left."""
        if self.full and self.next is None and self.size - self.at < reserve:
            self._make_ahead()
            raise DiskFull(
                f"the disk of the AIOS home is full: {self.full}",
                "make room there; what ends something is served meanwhile",
            )

    def commit(self) -> bool:
        """Write what was changed. False: there is no room for it yet, since a log is being made or
        none can be; call again."""
        if self.changes:
            data = self._framed(self.changes)
            if self.at + len(data) > self.size:
                if not self._turn_over(len(data) + MARK):
                    return False
                data = self._framed(self.changes)  # a seal holds for one place
            os.pwrite(self.log, data, self.at)
            self.at += len(data)
            self.changes = []
            if self.next is None and self.size - self.at < self.reserve:
                self._make_ahead()
        return True

    def _framed(self, changes: list[Change]) -> bytes:
        return _frame(changes, self.seal, f"log-{self.number}", self.at)

    def sync(self, then: Callable[[], None]) -> None:
        """Run `then` in the loop once all that is committed now would survive a power cut."""
        log = self.log

        def job() -> None:
            self.before_sync()
            os.fdatasync(log)
            self.post(then)

        self.jobs.put(job)

    def close(self) -> None:
        """Wait for the thread to finish what it was asked for."""
        done = threading.Event()
        self.jobs.put(done.set)
        done.wait()
        os.close(self.log)
        if self.next is not None:
            os.close(self.next)

    # --- logs -----------------------------------------------------------------------------------

    def _make_ahead(self) -> None:
        if not self.asked:
            self.asked = True
            number = self.number + 1
            self.jobs.put(lambda: self._make_next(number))

    def _make_next(self, number: int) -> None:
        made, full = None, ""
        try:
            made = make_ahead(self.folder / f"log-{number}", self.log_bytes)
        except OSError as error:  # asked for again by who finds too little room
            full = os.strerror(error.errno or 0)

        def tell() -> None:
            self.next, self.asked, self.full = made, False, full

        self.post(tell)

    def _turn_over(self, needed: int) -> bool:
        """Go on in the next log."""
        if self.next is None or needed > self.log_bytes:
            if self.asked:
                return False  # it is being made
            try:
                room = max(self.log_bytes, needed)
                made = make_ahead(self.folder / f"log-{self.number + 1}", room)
            except OSError as error:
                self.full = os.strerror(error.errno or 0)
                return False
            if self.next is not None:
                os.close(self.next)
            self.next, self.size = made, room
        else:
            self.size = self.log_bytes
        full, last, end = self.log, self.number, self.at
        self.log, self.next = self.next, None
        self.number += 1
        self.at = 0
        mark = self._framed([(BEHIND, "", str(end).encode())])
        os.pwrite(self.log, mark, 0)
        self.at = len(mark)

        def fold() -> None:
            self.before_sync()
            os.fdatasync(full)
            os.close(full)
            self.unfolded += end
            if self.unfolded < self.base_bytes:
                return
            rows, _ = read(self.folder, last, self.seal)
            try:
                self.base_bytes = _write_base(self.folder, last, rows, self.seal)
            except OSError as error:  # the logs stay, and are folded with the next
                print(f"journal: not folded: {error.strerror}", file=sys.stderr, flush=True)
            else:
                self.unfolded = 0
                _remove_before(self.folder, last)

        self.jobs.put(fold)
        return True

    def _work(self) -> None:
        while True:
            try:
                self.jobs.get()()
            except OSError as error:  # a sync failed: what is on the disk is not known any more
                self.post(lambda error=error: _stop(error))  # type: ignore[misc]


def _stop(error: OSError) -> None:
    raise error


# --- files -------------------------------------------------------------------------------------


def read(folder: Path, last: int | None = None, seal: Seal | None = None) -> tuple[Rows, int]:
    """All rows, of the newest base and the logs behind it, up to `last`; the last number used."""
    bases = sorted(int(path.name[5:]) for path in folder.glob("base-*") if path.name[5:].isdigit())
    logs = sorted(int(path.name[4:]) for path in folder.glob("log-*") if path.name[4:].isdigit())
    rows: Rows = {}
    last_used = max([0, *bases, *logs])
    base = max((n for n in bases if last is None or n <= last), default=0)
    files = [folder / f"base-{base}"] if base else []
    # A base of number n holds log n as well.
    files += [folder / f"log-{n}" for n in logs if n > base and (last is None or n <= last)]
    end = None  # of the log before
    for path in files:
        before, end = end, 0
        for body, stop in _whole(path.read_bytes()):
            end = stop
            for change, key, item in _changes(_opened(path, stop - len(body), body, seal)):
                if change == PUT:
                    rows[key] = [item]
                elif change == ADD:
                    rows.setdefault(key, []).append(item)
                elif change == DELETE:
                    rows.pop(key, None)
                elif before is not None and int(item) != before:
                    return rows, last_used  # a power cut tore the log before: this hangs on it
        end = None if path.name.startswith("base") else end
    return rows, last_used


def _opened(path: Path, at: int, body: bytes, seal: Seal | None) -> bytes:
    try:
        return body if seal is None else seal.open(path.name, b"%d" % (at - FRAME.size), body)
    except Damaged as error:
        raise StoreDamaged(
            f"the journal's {path} is damaged at byte {at}: {error}",
            f"move {path.parent} away to start without what ran",
        ) from None


def _frame(changes: list[Change], seal: Seal | None, name: str, at: int) -> bytes:
    """What is written at byte `at` of the file of that name."""
    body = _encode(changes)
    if seal is not None:
        body = seal.close(name, b"%d" % at, body)
    return FRAME.pack(len(body), zlib.crc32(body)) + body


def _whole(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Every frame and where it ends, up to the first that is not whole: zeros, or what was being
    written."""
    at = 0
    while at + FRAME.size <= len(data):
        length, crc = FRAME.unpack_from(data, at)
        at += FRAME.size
        body = data[at : at + length]
        at += length
        if length == 0 or len(body) < length or zlib.crc32(body) != crc:
            return
        yield body, at


def _write_base(folder: Path, number: int, rows: Rows, seal: Seal | None) -> int:
    """How many bytes it has."""
    temp = folder / "base-new"
    with temp.open("wb") as file:
        for key, (first, *rest) in rows.items():
            changes = [(PUT, key, first), *((ADD, key, item) for item in rest)]
            file.write(_frame(changes, seal, f"base-{number}", file.tell()))
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    temp.rename(folder / f"base-{number}")
    sync_folder(folder)
    return size


def _remove_before(folder: Path, number: int) -> None:
    """What the base of this number holds."""
    for path in folder.iterdir():
        kind, _, n = path.name.partition("-")
        if n.isdigit() and (int(n) < number or (kind == "log" and int(n) == number)):
            path.unlink()
