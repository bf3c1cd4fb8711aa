"""The log as the kernel writes it.

A record is written when it is appended, which is enough for the kernel's death; `sync` makes all
that were appended outlast the machine's. Room is made ahead, full of zeros, by the log's own
thread, which also signs checkpoints and removes what is older than is to be kept.
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

from ..files import make_ahead, sync_folder, write_zeros
from . import segment
from .checkpoint import Checkpoints, Signer
from .resume import resume
from .segment import encode, end_of, framed

AHEAD = 4 << 20  # bytes of zeros that a segment begins with: more than most need
LONGEST = 1024  # bytes of a frame, at most
RESERVE = 1024  # records that there is room for when nothing that has an effect may begin
LOOK = 255  # records between two looks at the room, as a mask
AGAIN = 1.0  # seconds until room is looked for again on a full disk

Fields = tuple[int, str, str, int, str, str, bytes, str, str, int]  # of a Record, from `pid` on


class Log:
    """Opens the log in `folder`, or begins one; `trouble` says what is wrong with it, and `torn`
    how many bytes behind the last whole record were cut off.

    `boot` is the kernel's id, `keep` how many bytes of full segments stay. `post` runs a function
    in the kernel's loop, from another thread.

    Raises:
        DiskFull: there is no room for it.
    """

    def __init__(
        self, folder: Path, signer: Signer, post: Callable[[Callable[[], None]], None], *,
        boot: bytes, keep: int = 1 << 30,
    ) -> None:  # fmt: skip
        self.folder, self.post, self.boot, self.keep = folder, post, boot, keep
        # Frames that there was no room for; with that of a header, the segment that it begins.
        self.unwritten: deque[tuple[int | None, bytes]] = deque()
        self.next: int | None = None  # the file that follows, made ahead
        self.full, self.looked = "", 0.0  # why no room could be made, and when
        self.asked = False
        self.files_lock, self.room_lock, self.sync_lock = (threading.Lock() for _ in range(3))
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self.checkpoints = Checkpoints(folder, signer)
            found = resume(folder, self.checkpoints.size)
        except OSError as error:
            raise DiskFull(f"no audit log in {folder}: {error.strerror}") from error
        self.trouble, self.torn = self.checkpoints.trouble or found.trouble, found.torn
        self.peaks, self.chain, self.end = found.peaks, found.chain, found.end
        self.files, self.at, self.room = found.files, found.at, found.room
        self.sizes, self.kept = found.sizes, found.kept
        self.written, self.synced = self.size, 0
        self.signed = self.checkpoints.size
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        if not self.has_room(RESERVE):
            self._close_files()
            raise DiskFull(f"no audit log in {folder}: {self.full}")
        self.thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self.thread.start()

    @property
    def size(self) -> int:
        """Records, ever; the sequence of the next."""
        return self.peaks.size

    # --- appending --------------------------------------------------------------------------------

    def append(self, fields: Fields) -> Receipt:
        """A record; written, unless the disk is full: then `flush` does it, and nothing that
        follows from it may be shown before."""
        if self.peaks.size == self.end:
            self._begin()
        sequence = self.peaks.size
        body = encode((sequence, self.boot, time.time_ns(), time.monotonic_ns(), *fields))
        leaf = sha256(b"\0" + body).digest()
        chain = sha256(self.chain + leaf).digest()
        self._write(framed(body, chain), None)
        self.chain = chain
        self.peaks.push(leaf)
        if not self.unwritten:
            self.written = sequence + 1
        if sequence + 1 == self.end:
            self.checkpoint()
        elif not sequence & LOOK and self.left() < 2 * RESERVE:
            self._ask()
        return sequence, chain

    def _write(self, frame: bytes, first: int | None) -> None:
        if self.unwritten or first is not None or self.at + len(frame) > self.room:
            self.unwritten.append((first, frame))
            self.flush()
        else:
            os.pwrite(self.files[-1], frame, self.at)
            self.at += len(frame)

    def flush(self) -> bool:
        """Write what is not written yet. False: there is no room for it now; call again."""
        while self.unwritten:
            first, frame = self.unwritten[0]
            if first is not None and not self._turn_over(first):
                return False
            if self.at + len(frame) > self.room and not self._prepare():
                return False
            os.pwrite(self.files[-1], frame, self.at)
            self.at += len(frame)
            self.unwritten.popleft()
            self.written = self.size - len(self.unwritten)
        return True

    def _begin(self) -> None:
        """A new segment."""
        first = self.size
        gone = self._retain()
        frame, self.chain = segment.header(self.peaks, self.kept)
        self.end = end_of(first)
        self.sizes[first] = 0
        self._write(frame, first)
        if gone:
            what = f"{gone[0]}-{self.kept - 1}"
            self.append((0, "", "note", 0, "audit.retention", what, b"", "", "", 0))
            self.jobs.put(partial(self._remove, gone, self.kept))

    # --- room -------------------------------------------------------------------------------------

    def has_room(self, records: int) -> bool:
        """Whether that many can be written; if not, `full` says why."""
        if not self.unwritten and self.left() >= records:
            return True
        return self._prepare() and self.flush()

    def left(self) -> int:
        """Records that there is room for, at least."""
        here, following = (self.room - self.at) // LONGEST, self.end - self.size
        if here < following:
            return here
        return following + (AHEAD // LONGEST if self.next is not None else 0)

    def _turn_over(self, first: int) -> bool:
        """Go on in the file of segment `first`."""
        if self.next is None and not self._prepare(first):
            return False
        with self.room_lock, self.files_lock:
            assert self.next is not None
            if self.files:
                os.ftruncate(self.files[-1], self.at)
            self.files.append(self.next)
            self.next, self.at, self.room = None, 0, AHEAD
        return True

    def _ask(self) -> None:
        if not self.asked:
            self.asked = True
            self.jobs.put(self._prepare_ahead)

    def _prepare_ahead(self) -> None:
        self._prepare()
        self.asked = False

    def _prepare(self, first: int | None = None) -> bool:
        """Make room; with `first`, for that segment, which is to be begun. False: there is none,
        or there was none a moment ago. From any thread."""
        if self.full and time.monotonic() < self.looked + AGAIN:
            return False
        with self.room_lock:
            left = self.end - self.size
            wanted = self.at + min(AHEAD, max(RESERVE, left) * LONGEST)
            try:
                if self.files and self.room < wanted:
                    write_zeros(self.files[-1], self.room, wanted)
                    self.room = wanted
                if self.next is None and (first is not None or left < 4 * RESERVE):
                    following = self.end if first is None else first
                    self.next = make_ahead(segment.path_of(self.folder, following), AHEAD)
            except OSError as error:
                self.full, self.looked = str(error.strerror), time.monotonic()
                return False
            self.full = ""
            return True

    # --- what lasts -------------------------------------------------------------------------------

    def sync(self) -> None:
        """When it returns, all that was written before would survive a power cut. From any thread.

        Raises:
            OSError: it would not, and the kernel stops.
        """
        with self.sync_lock:
            upto = self.written
            if upto == self.synced:
                return
            with self.files_lock:
                files = list(self.files)
            try:
                for file in files:
                    os.fdatasync(file)
            except OSError as error:  # what is on the disk is not known any more
                self.post(partial(_stop, error))
                raise
            with self.files_lock:
                for file in files[:-1]:
                    self.files.remove(file)
                    os.close(file)
            self.synced = upto

    def checkpoint(self) -> None:
        """Have what was written signed."""
        if self.size > self.signed and not self.unwritten:
            self.signed = self.size
            self.jobs.put(partial(self._sign, self.size, self.peaks.root()))

    def _sign(self, size: int, root: bytes) -> None:
        self.sync()
        if not self.checkpoints.add(size, root):
            self.signed = self.checkpoints.size  # the disk is full: tried again by and by

    # --- retention --------------------------------------------------------------------------------

    def _retain(self) -> list[int]:
        """The segments that are to go, when another begins; `kept` is the first that stays."""
        if self.files:
            self.sizes[max(self.sizes)] = self.at
        gone, held = [], sum(self.sizes.values())
        for first in sorted(self.sizes):
            if held <= self.keep:
                break
            held -= self.sizes.pop(first)
            gone.append(first)
        if gone:
            self.kept = min(self.sizes, default=self.size)
        return gone

    def _remove(self, gone: list[int], kept: int) -> None:
        self.sync()
        for first in gone:
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
        """Have all of it signed, and stop."""
        self.checkpoint()
        self.jobs.put(None)
        self.thread.join()
        with contextlib.suppress(OSError):  # then the kernel is stopping for that already
            self.sync()
        self._close_files()

    def _close_files(self) -> None:
        for file in [*self.files, *([] if self.next is None else [self.next])]:
            os.close(file)
        self.checkpoints.close()


def _stop(error: OSError) -> None:
    print(f"audit: the log cannot be written: {error}", file=sys.stderr, flush=True)
    raise error
