"""The journal: rows that the kernel must not forget, written before anyone sees what follows from
them.

A row is a list of items with a key. `put` makes a row anew or deletes it, `add` appends an item to
it. All changes between two commits are one write, which counts as a whole or not at all. The
kernel's death loses nothing that was committed; the machine's loses nothing that was synced.

A folder holds a base, which is all rows at one time, and the logs written since. Logs are made
ahead, full of zeros, so a commit cannot run out of disk and a sync has no metadata to write. Once
the full logs hold as many bytes as the base, the journal's own thread folds them into the next
base: so all that is written is at most three times what was committed.

The next log is made once a quarter of this one is used. Meanwhile few new calls are accepted
(`is_waiting`), so most of the rest is left if the disk turns out to be full. The last third of it
is for changes that end something, the middle third for what runs already.
"""

from __future__ import annotations

import os
import queue
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from aios.syscalls.errors import DiskFull, StoreDamaged

from .lib.callbacks import Post, ignore
from .lib.encryption import AeadCodec, Damaged
from .lib.files import make_ahead, sync_folder

LOG_BYTES = 8 << 20
MARK_BYTES = 128  # at least the size of the frame that begins a log
FRAME = struct.Struct("<II")  # length, CRC-32 of what follows
PUT, ADD, DELETE, BEHIND = 0, 1, 2, 3  # BEHIND: how long the log before this one is
Change = tuple[int, str, bytes]
Rows = dict[str, list[bytes]]
PutRow = Callable[[str, bytes | None], None]  # Journal.put, for those who write rows themselves

_encode = msgspec.msgpack.Encoder().encode
_changes = msgspec.msgpack.Decoder(list[Change]).decode


class Journal:
    """Opens the journal in `folder`; `rows` holds the rows that it found there.

    `post` runs a function in the kernel's loop, called from the journal's thread. `before_sync`
    runs in that thread, and makes durable what has to be before the rows are.

    Raises:
        DiskFull: there is no room for a log.
        StoreDamaged: it was encrypted with another key, or an encrypted frame was moved.
    """

    def __init__(
        self, folder: Path, post: Post, log_bytes: int = LOG_BYTES,
        codec: AeadCodec | None = None, before_sync: Callable[[], None] = ignore,
    ) -> None:  # fmt: skip
        self.folder, self.post, self.log_bytes, self.codec = folder, post, log_bytes, codec
        self.before_sync = before_sync
        self.changes: list[Change] = []
        self.next: int | None = None  # descriptor of the next log, made ahead
        self.is_making_next = False
        self.full = ""  # why no log could be made when that was tried last
        folder.mkdir(mode=0o700, exist_ok=True)
        self.rows, self.number = read(folder, codec=codec)
        try:
            before_sync()
            self.base_bytes = _write_base(folder, self.number + 1, self.rows, codec)
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

    def put(self, key: str, item: bytes | None) -> None:
        """Write a row anew; with None, delete it."""
        self.changes.append((DELETE, key, b"") if item is None else (PUT, key, item))

    def add(self, key: str, item: bytes) -> None:
        self.changes.append((ADD, key, item))

    def check_room(self) -> None:
        """Refuse to begin something new on a full disk. Raises DiskFull."""
        self._check_room(self.reserve)

    def check_running(self) -> None:
        """Refuse all but what ends something on a full disk. Raises DiskFull."""
        self._check_room(self.reserve // 3)

    def is_waiting(self) -> bool:
        """Tell whether a log that will soon be needed is being made."""
        return self.is_making_next and not self.full and self.size - self.at < self.reserve

    def _check_room(self, reserve: int) -> None:
        """Raise DiskFull if no log can be made and less than `reserve` bytes are left."""
        if self.full and self.next is None and self.size - self.at < reserve:
            self._request_next()
            raise DiskFull(
                f"the disk of the AIOS home is full: {self.full}",
                "make room there; what ends something is served meanwhile",
            )

    def commit(self) -> bool:
        """Write the changes. Return False if there is no room yet for lack of a log; call again."""
        if self.changes:
            data = self._encode_frame(self.changes)
            if self.at + len(data) > self.size:
                if not self._next_log(len(data) + MARK_BYTES):
                    return False
                data = self._encode_frame(self.changes)  # it is encrypted for its place
            os.pwrite(self.log, data, self.at)
            self.at += len(data)
            self.changes = []
            if self.next is None and self.size - self.at < self.reserve:
                self._request_next()
        return True

    def _encode_frame(self, changes: list[Change]) -> bytes:
        return _frame(changes, self.codec, f"log-{self.number}", self.at)

    def sync(self, then: Callable[[], None]) -> None:
        """Run `then` in the loop once all that is committed now would survive a power cut."""
        log = self.log

        def job() -> None:
            self.before_sync()
            os.fdatasync(log)
            self.post(then)

        self.jobs.put(job)

    def close(self) -> None:
        """Wait for the thread to finish its jobs, and close the files."""
        done = threading.Event()
        self.jobs.put(done.set)
        done.wait()
        os.close(self.log)
        if self.next is not None:
            os.close(self.next)

    # --- logs -----------------------------------------------------------------------------------

    def _request_next(self) -> None:
        if not self.is_making_next:
            self.is_making_next = True
            number = self.number + 1
            self.jobs.put(partial(self._make_next, number))

    def _make_next(self, number: int) -> None:
        made, full = None, ""
        try:
            made = make_ahead(self.folder / f"log-{number}", self.log_bytes)
        except OSError as error:  # tried again when there is too little room
            full = os.strerror(error.errno or 0)

        def tell() -> None:
            self.next, self.is_making_next, self.full = made, False, full

        self.post(tell)

    def _next_log(self, needed: int) -> bool:
        """Go on in the next log. Return False if there is none yet."""
        if self.next is None or needed > self.log_bytes:
            if self.is_making_next:
                return False  # the next log is being made
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
        mark = self._encode_frame([(BEHIND, "", str(end).encode())])
        os.pwrite(self.log, mark, 0)
        self.at = len(mark)

        def fold() -> None:
            self.before_sync()
            os.fdatasync(full)
            os.close(full)
            self.unfolded += end
            if self.unfolded < self.base_bytes:
                return
            rows, _ = read(self.folder, last, self.codec)
            try:
                self.base_bytes = _write_base(self.folder, last, rows, self.codec)
            except OSError as error:  # the logs stay, and are folded later
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
            except OSError as error:  # a failed sync: the disk's state is unknown
                self.post(partial(_stop, error))


def _stop(error: OSError) -> None:
    raise error


# --- files -------------------------------------------------------------------------------------


def read(folder: Path, last: int | None = None, codec: AeadCodec | None = None) -> tuple[Rows, int]:
    """Read all rows from the newest base and the logs behind it, up to number `last`.

    Returns them and the last number used.
    """
    bases = sorted(int(path.name[5:]) for path in folder.glob("base-*") if path.name[5:].isdigit())
    logs = sorted(int(path.name[4:]) for path in folder.glob("log-*") if path.name[4:].isdigit())
    rows: Rows = {}
    last_used = max([0, *bases, *logs])
    base = max((n for n in bases if last is None or n <= last), default=0)
    files = [folder / f"base-{base}"] if base else []
    # A base holds the rows of the log of its own number.
    files += [folder / f"log-{n}" for n in logs if n > base and (last is None or n <= last)]
    end = None  # of the log before
    for path in files:
        before, end = end, 0
        for body, stop in _whole_frames(path.read_bytes()):
            end = stop
            for change, key, item in _changes(_decode(path, stop - len(body), body, codec)):
                if change == PUT:
                    rows[key] = [item]
                elif change == ADD:
                    rows.setdefault(key, []).append(item)
                elif change == DELETE:
                    rows.pop(key, None)
                elif before is not None and int(item) != before:
                    return (
                        rows,
                        last_used,
                    )  # a power cut tore the previous log: this one depends on it
        end = None if path.name.startswith("base") else end
    return rows, last_used


def _decode(path: Path, at: int, body: bytes, codec: AeadCodec | None) -> bytes:
    try:
        return body if codec is None else codec.decode(path.name, b"%d" % (at - FRAME.size), body)
    except Damaged as error:
        raise StoreDamaged(
            f"the journal's {path} is damaged at byte {at}: {error}",
            f"move {path.parent} away to start without what ran",
        ) from None


def _frame(changes: list[Change], codec: AeadCodec | None, name: str, at: int) -> bytes:
    """Encode changes as the frame at byte `at` of the file `name`."""
    body = _encode(changes)
    if codec is not None:
        body = codec.encode(name, b"%d" % at, body)
    return FRAME.pack(len(body), zlib.crc32(body)) + body


def _whole_frames(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each frame and its end, up to the first that is not whole: zeros, or an unfinished
    write.
    """
    at = 0
    while at + FRAME.size <= len(data):
        length, crc = FRAME.unpack_from(data, at)
        at += FRAME.size
        body = data[at : at + length]
        at += length
        if length == 0 or len(body) < length or zlib.crc32(body) != crc:
            return
        yield body, at


def _write_base(folder: Path, number: int, rows: Rows, codec: AeadCodec | None) -> int:
    """Write a base, and return its size in bytes."""
    temp = folder / "base-new"
    with temp.open("wb") as file:
        for key, (first, *rest) in rows.items():
            changes = [(PUT, key, first), *((ADD, key, item) for item in rest)]
            file.write(_frame(changes, codec, f"base-{number}", file.tell()))
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    temp.rename(folder / f"base-{number}")
    sync_folder(folder)
    return size


def _remove_before(folder: Path, number: int) -> None:
    """Remove the files whose rows are in the base of this number."""
    for path in folder.iterdir():
        kind, _, n = path.name.partition("-")
        if n.isdigit() and (int(n) < number or (kind == "log" and int(n) == number)):
            path.unlink()
