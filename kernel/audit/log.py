"""The log as the kernel writes it.

Records that were appended are written by `flush`, all at once, before anything that follows from
them leaves the kernel: that is enough for the kernel's death. `sync` makes them outlast the
machine's. Room is made ahead, full of zeros, by the log's own thread, which also signs checkpoints
and removes what is older than is to be kept.
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

from ..lib.files import make_ahead, sync_folder, write_zeros
from . import segment
from .checkpoint import Checkpoints, Signer
from .gathered import Fields
from .resume import resume
from .segment import encode, end_of, framed

AHEAD = 4 << 20  # bytes of zeros that a segment begins with: more than most need
LONGEST = 1024  # bytes of a frame, at most
RESERVE = 1024  # records that there is room for when nothing that has an effect may begin
AGAIN = 1.0  # seconds until room is looked for again on a full disk


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
        # Frames; with that of a header, the segment that it begins.
        self.unwritten: deque[tuple[int | None, bytes]] = deque()
        self.ahead: dict[int, int] = {}  # files of segments to come, by their first record
        self.spare = 0  # records that there is room for
        self.full, self.looked = "", 0.0  # why no room could be made, and when
        self.asked = False
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
        """A record. Nothing that follows from it may be shown before `flush` has written it."""
        peaks = self.peaks
        if peaks.size == self.end:
            self._begin()
        sequence = peaks.size
        body = encode((sequence, self.boot, time.time_ns(), time.monotonic_ns(), *fields))
        leaf = sha256(b"\0" + body).digest()
        chain = sha256(self.chain + leaf).digest()
        self.unwritten.append((None, framed(body, chain)))
        self.chain = chain
        peaks.push(leaf)
        self.spare -= 1
        if sequence + 1 == self.end:
            self.checkpoint()
        elif self.spare < 2 * RESERVE:
            self._ask()
        return sequence, chain

    def flush(self) -> bool:
        """Write what was appended; from any thread. False: there is no room for it now."""
        with self.write_lock:
            while self.unwritten:
                first, _ = self.unwritten[0]
                if first is not None and not self._turn_over(first):
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
        """A new segment."""
        first = self.size
        self.flush()
        gone = self._retain()
        frame, self.chain = segment.header(self.peaks, self.kept)
        self.end = end_of(first)
        self.sizes[first] = 0
        self.unwritten.append((first, frame))
        if gone:
            what = f"{gone[0]}-{self.kept - 1}"
            self.append((0, "", "note", 0, "audit.retention", what, b"", "", "", 0))
            self.jobs.put(partial(self._remove, gone, self.kept))

    # --- room -------------------------------------------------------------------------------------

    def has_room(self, records: int) -> bool:
        """Whether that many can be written; if not, `full` says why."""
        if self.spare >= records or self._left() >= records:
            return True
        if self.flush() and self._left() >= records:
            return True
        return self._prepare() and self._left() >= records

    def _left(self) -> int:
        """Records that there is room for, at least."""
        following = self.end - self.size
        here = (self.room - self.at) // LONGEST - (self.size - self.written)
        more = AHEAD // LONGEST if self.end in self.ahead else 0
        self.spare = here if here < following else following + more
        return self.spare

    def _turn_over(self, first: int) -> bool:
        """Go on in the file of segment `first`."""
        if first not in self.ahead and not self._prepare(first):
            return False
        with self.room_lock, self.files_lock:
            if self.files:
                os.ftruncate(self.files[-1], self.at)
            self.files.append(self.ahead.pop(first))
            self.at, self.room = 0, AHEAD
        return True

    def _ask(self) -> None:
        if self._left() < 2 * RESERVE and not self.asked:
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
            end = self.end  # once: the loop may be beginning a segment
            left = end - self.size
            wanted = self.at + min(AHEAD, max(RESERVE, left) * LONGEST)
            try:
                if self.files and self.room < wanted:
                    write_zeros(self.files[-1], self.room, wanted)
                    self.room = wanted
                following = end if first is None else first
                if following not in self.ahead and (first is not None or left < 4 * RESERVE):
                    path = segment.path_of(self.folder, following)
                    self.ahead[following] = make_ahead(path, AHEAD)
            except OSError as error:
                self.full, self.looked = str(error.strerror), time.monotonic()
                return False
            self.full = ""
            return True

    # --- what lasts -------------------------------------------------------------------------------

    def sync(self) -> None:
        """When it returns, all that was appended before would survive a power cut, but for what
        there was no room for; of that nothing was shown. From any thread.

        Raises:
            OSError: it would not, and the kernel stops.
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
        if self.size > self.signed:
            self.signed = self.size
            self.jobs.put(partial(self._sign, self.size, self.peaks.root()))

    def _sign(self, size: int, root: bytes) -> None:
        self.sync()
        if self.written < size or not self.checkpoints.add(size, root):
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
        for file in [*self.files, *self.ahead.values()]:
            os.close(file)
        self.checkpoints.close()


def _stop(error: OSError) -> None:
    print(f"audit: the log cannot be written: {error}", file=sys.stderr, flush=True)
    raise error
