"""Write the audit log.

`flush` writes all appended records before anything that follows from them leaves the kernel: then
they survive the kernel's death. After `sync` they survive a power cut. The log's own thread makes
room ahead, full of zeros, signs checkpoints, and removes expired segments.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

from aios.syscalls.errors import DiskFull
from aios.syscalls.wire import Receipt

from ..lib.callbacks import Post
from ..lib.files import make_ahead, sync_folder, write_zeros
from . import segment
from .checkpoint import Checkpoints, Signer
from .coalesce import Fields
from .resume import resume
from .segment import encode, encode_frame, end_of

AHEAD_BYTES = 4 << 20  # of zeros in a new segment, more than most need
MAX_FRAME_BYTES = 1024
RESERVE_RECORDS = 1024  # without this much room no changing call may begin
RETRY_S = 1.0  # until room is tried again on a full disk


class AuditLog:
    """Opens the log in `folder`, or begins one.

    `trouble` says what is wrong with it, and `torn` how many bytes behind the last whole record
    were cut off. `boot` is the kernel's id, `keep` how many bytes of full segments stay. `post`
    runs a function in the kernel's loop, from another thread.

    Raises:
        DiskFull: there is no room for it.
    """

    def __init__(
        self, folder: Path, signer: Signer, post: Post, *,
        boot: bytes, keep: int = 1 << 30,
    ) -> None:  # fmt: skip
        self.folder, self.post, self.boot, self.keep = folder, post, boot, keep
        # Frames, each with the segment that it begins if it is a header.
        self.unwritten: deque[tuple[int | None, bytes]] = deque()
        self.ahead: dict[int, int] = {}  # files of future segments, by their first record
        self.spare = 0  # records that there is room for, at least
        self.full, self.failed_at = "", 0.0  # why and when no room could be made
        self.is_making_room = False
        self.write_lock, self.files_lock, self.room_lock, self.sync_lock = (
            threading.Lock() for _ in range(4)
        )
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self.checkpoints = Checkpoints(folder, signer)
            found = resume(folder, self.checkpoints.size, self.checkpoints.root)
        except OSError as error:
            raise DiskFull(f"no audit log in {folder}: {error.strerror}") from error
        self.trouble, self.torn = self.checkpoints.trouble or found.trouble, found.torn
        self.peaks, self.chain, self.end = found.peaks, found.chain, found.end
        self.size = self.peaks.size  # records ever; the sequence of the next
        self.files, self.at, self.room = found.files, found.at, found.room
        self.sizes, self.kept = found.sizes, found.kept
        self.written, self.synced = self.size, 0
        self.signed = self.checkpoints.size
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        if not self.has_room(RESERVE_RECORDS):
            self._close_files()
            raise DiskFull(f"no audit log in {folder}: {self.full}")
        self.thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self.thread.start()

    # --- appending --------------------------------------------------------------------------------

    def append(self, fields: Fields) -> Receipt:
        """Append a record. Nothing that follows from it may be shown before `flush` has written
        it.
        """
        if self.size == self.end:
            self._begin()
        sequence = self.size
        body = encode((sequence, self.boot, time.time_ns(), time.monotonic_ns(), *fields))
        leaf = sha256(b"\0" + body).digest()
        chain = sha256(self.chain + leaf).digest()
        self.unwritten.append((None, encode_frame(body, chain)))
        self.chain = chain
        self.peaks.push(leaf)
        self.size += 1
        self.spare -= 1
        if self.size == self.end:
            self.checkpoint()
        elif self.spare < 2 * RESERVE_RECORDS:
            self._request_room()
        return sequence, chain

    def flush(self) -> bool:
        """Write all appended records. Return False if there is no room now. Thread-safe."""
        with self.write_lock:
            while self.unwritten:
                first, _ = self.unwritten[0]
                if first is not None and not self._next_file(first):
                    return False
                frames: list[bytes] = []
                size = self.room - self.at
                while self.unwritten and (not frames or self.unwritten[0][0] is None):
                    size -= len(self.unwritten[0][1])
                    if size < 0:
                        break
                    frames.append(self.unwritten.popleft()[1])
                if not frames and not self._prepare():
                    return False
                os.pwrite(self.files[-1], data := b"".join(frames), self.at)
                self.at += len(data)
                self.written += len(frames) - (first is not None)
        return True

    def _begin(self) -> None:
        """Begin a segment."""
        first = self.size
        self.flush()
        expired = self._expire()
        frame, self.chain = segment.header(self.peaks, self.kept)
        self.end = end_of(first)
        self.sizes[first] = 0
        self.unwritten.append((first, frame))
        if expired:
            what = f"{expired[0]}-{self.kept - 1}"
            self.append((0, "", "note", 0, "audit.retention", what, b"", "", "", 0))
            self.jobs.put(partial(self._remove, expired, self.kept))

    # --- room -------------------------------------------------------------------------------------

    def has_room(self, records: int) -> bool:
        """Tell whether that many records can be written; if not, `full` says why."""
        if self.spare >= records or self._count_room() >= records:
            return True
        if self.flush() and self._count_room() >= records:
            return True
        return self._prepare() and self._count_room() >= records

    def _count_room(self) -> int:
        """Count the records that there is room for, at least."""
        following = self.end - self.size
        here = (self.room - self.at) // MAX_FRAME_BYTES - (self.size - self.written)
        more = AHEAD_BYTES // MAX_FRAME_BYTES if self.end in self.ahead else 0
        self.spare = here if here < following else following + more
        return self.spare

    def _next_file(self, first: int) -> bool:
        """Go on in the file of segment `first`."""
        if first not in self.ahead and not self._prepare(first):
            return False
        with self.room_lock, self.files_lock:
            if self.files:
                os.ftruncate(self.files[-1], self.at)
            self.files.append(self.ahead.pop(first))
            self.at, self.room = 0, AHEAD_BYTES
        return True

    def _request_room(self) -> None:
        if self._count_room() < 2 * RESERVE_RECORDS and not self.is_making_room:
            self.is_making_room = True
            self.jobs.put(self._prepare_ahead)

    def _prepare_ahead(self) -> None:
        self._prepare()
        self.is_making_room = False

    def _prepare(self, first: int | None = None) -> bool:
        """Make room in this segment and the next one. Return False if there is none. Thread-safe.

        `first` is a segment that is about to begin. After a failure nothing is tried for RETRY_S.
        """
        if self.full and time.monotonic() < self.failed_at + RETRY_S:
            return False
        with self.room_lock:
            end = self.end  # read once: the loop may begin a segment
            left = end - self.size
            wanted = self.at + min(AHEAD_BYTES, max(RESERVE_RECORDS, left) * MAX_FRAME_BYTES)
            try:
                if self.files and self.room < wanted:
                    write_zeros(self.files[-1], self.room, wanted)
                    self.room = wanted
                following = end if first is None else first
                if following not in self.ahead and (
                    first is not None or left < 4 * RESERVE_RECORDS
                ):
                    path = segment.path_of(self.folder, following)
                    self.ahead[following] = make_ahead(path, AHEAD_BYTES)
            except OSError as error:
                self.full, self.failed_at = str(error.strerror), time.monotonic()
                return False
            self.full = ""
            return True

    # --- what lasts -------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make durable what was appended before, but for records without room: nothing shown
        follows from those. Thread-safe.

        Raises:
            OSError: it is not durable, and the kernel stops.
        """
        with self.sync_lock:
            try:
                self.flush()
                upto = self.written
                if upto == self.synced:
                    return
                with self.files_lock:
                    files = list(self.files)
                for file in files:
                    os.fdatasync(file)
            except OSError as error:  # the disk's state is unknown
                self.post(partial(_stop, error))
                raise
            with self.files_lock:
                for file in files[:-1]:
                    self.files.remove(file)
                    os.close(file)
            self.synced = upto

    def checkpoint(self) -> None:
        """Have all records so far signed."""
        if self.size > self.signed:
            self.signed = self.size
            self.jobs.put(partial(self._sign, self.size, self.peaks.root()))

    def _sign(self, size: int, root: bytes) -> None:
        self.sync()
        if self.written < size or not self.checkpoints.add(size, root):
            self.signed = self.checkpoints.size  # the disk is full: retry later

    # --- retention --------------------------------------------------------------------------------

    def _expire(self) -> list[int]:
        """Return the segments that expire when another begins; `kept` is the first that stays."""
        if self.files:
            self.sizes[max(self.sizes)] = self.at
        expired, held = [], sum(self.sizes.values())
        for first in sorted(self.sizes):
            if held <= self.keep:
                break
            held -= self.sizes.pop(first)
            expired.append(first)
        if expired:
            self.kept = min(self.sizes, default=self.size)
        return expired

    def _remove(self, expired: list[int], kept: int) -> None:
        self.sync()
        for first in expired:
            segment.path_of(self.folder, first).unlink(missing_ok=True)
        sync_folder(self.folder)
        self.checkpoints.drop(kept)

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            try:
                job()
            except OSError as error:
                self.post(partial(_stop, error))

    def close(self) -> None:
        """Sign all records, and stop the thread."""
        self.checkpoint()
        self.jobs.put(None)
        self.thread.join()
        with contextlib.suppress(OSError):  # the kernel stops for that already
            self.sync()
        self._close_files()

    def _close_files(self) -> None:
        for file in [*self.files, *self.ahead.values()]:
            os.close(file)
        self.checkpoints.close()


def _stop(error: OSError) -> None:
    print(f"audit: the log cannot be written: {error}", file=sys.stderr, flush=True)
    raise error
