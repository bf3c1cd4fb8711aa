"""Audit logs for tests: written without a kernel, and what verify says of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from aios.kernel.audit.checkpoint import Signer
from aios.kernel.audit.log import AuditLog
from aios.kernel.audit.merkle import Peaks
from aios.kernel.audit.segment import (
    HASH_BYTES,
    LENGTH,
    SEGMENT_RECORDS,
    Record,
    SegmentState,
    begin,
    decode,
    follow,
    path_of,
    segments,
)
from aios.kernel.audit.verify import Anchor, examine, verify
from aios.syscalls.wire import Receipt

COUNT = 1000  # records of the log that is tampered with


class Open:
    """A log in `home`, with a loop for what its thread posts."""

    def __init__(self, home: Path, keep: int = 1 << 30) -> None:
        self.posted: list[Callable[[], None]] = []
        signer = Signer(home / "keys" / "audit")
        self.log = AuditLog(home / "audit", signer, self.posted.append, boot=b"the boot", keep=keep)

    def add(self, count: int) -> list[Receipt]:
        """Records that are written: enough for the kernel's death."""
        receipts = [self.append(number) for number in range(count)]
        self.log.flush()
        return receipts

    def append(self, n: int) -> Receipt:
        fields = (7, "/writer", "intent", n, "mem.put", f"items=k{n}", b"", "", "", 0)
        return self.log.append(fields)

    def settle(self) -> None:
        """Wait until the thread has done what it was asked for."""
        done = threading.Event()
        self.log.jobs.put(done.set)
        assert done.wait(10)

    def close(self) -> None:
        self.log.close()
        assert self.posted == []


def write(home: Path, count: int) -> list[Receipt]:
    opened = Open(home)
    receipts = opened.add(count)
    opened.close()
    return receipts


def whats_wrong(home: Path, receipts: Sequence[Receipt] = ()) -> list[str]:
    report = verify(home / "audit", receipts=receipts)
    return [f"{problem.sequence}: {problem.what}" for problem in report.problems]


def records(home: Path) -> Iterator[tuple[int, int]]:
    """Where each record of the first segment begins and ends."""
    data = path_of(home / "audit", 0).read_bytes()
    at = begin(data, 0).at
    while length := LENGTH.unpack_from(data, at)[0]:
        end = at + LENGTH.size + length + HASH_BYTES
        yield at, end
        at = end


class Victim:
    """A log of COUNT records in memory; every change of it is shown to the verifier's own
    `examine`, from before the first record that is touched, with the last checkpoint alone."""

    def __init__(self, home: Path) -> None:
        write(home, COUNT)
        self.edges = list(records(home))
        end = self.edges[-1][1]
        self.data = path_of(home / "audit", 0).read_bytes()[: end + 64]
        self.before: list[SegmentState] = []  # before each record
        state = begin(self.data, 0)
        for sequence in range(COUNT):
            self.before.append(state)
            state = SegmentState(state.at, state.chain, Peaks(sequence, state.peaks.roots), 0)
            follow(self.data, state, sequence + 1)
        assert (state.sequence, state.at) == (COUNT, end)
        self.anchors = [Anchor(COUNT, root=state.peaks.root())]
        assert not self.shows(self.data, 0)

    def shows(self, data: bytes | bytearray, record: int) -> bool:
        known = self.before[min(record, COUNT - 1)]
        state = SegmentState(known.at, known.chain, Peaks(known.sequence, known.peaks.roots), 0)
        return bool(examine(data, state, SEGMENT_RECORDS, self.anchors))

    def hidden(self, record: int, others: Callable[[], Iterable[int]]) -> list[tuple[int, int]]:
        """Changes of one byte of a record that do not show; of the last one also behind it.
        `others` gives what a byte is XORed with."""
        start, end = self.edges[record]
        data = bytearray(self.data)
        found = []
        for at in range(start, end if record < COUNT - 1 else len(data)):
            for other in others():
                data[at] = self.data[at] ^ other
                if not self.shows(data, record):
                    found.append((at, other))
            data[at] = self.data[at]
        return found


def read_records(home: Path) -> Iterator[Record]:
    """Read all records as they are now."""
    for first, path in segments(home / "audit"):
        data = path.read_bytes()
        at = begin(data, first).at if data[0] else 0
        while length := LENGTH.unpack_from(data.ljust(at + 4, b"\0"), at)[0]:
            yield decode(data[at + LENGTH.size : at + LENGTH.size + length])
            at += LENGTH.size + length + 32
