"""Verify a log from its folder alone, without the kernel.

Every chain value is computed again, and the tree's root at every checkpoint. Segments are
independent of each other, so a large log is verified by a process a processor; then the end of each
has to fit the header of the next.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

import msgspec

from aios.syscalls.errors import AuditDamaged, BadInput
from aios.syscalls.wire import Receipt

from ..lib.callbacks import ignore
from .checkpoint import Checkpoint, PublicKey, newest_of, open_note, public_key, split_notes
from .segment import SegmentState, begin, end_of, follow, is_blank, segments

SETTLE_S = 0.01  # until a problem is checked again
MAX_SEGMENTS_HERE = 2  # verified in this process: others are slow to start


class Problem(msgspec.Struct, frozen=True):
    """Something that is wrong with a log."""

    sequence: int | None  # of the first record concerned; None: another file
    what: str


class Report(msgspec.Struct, kw_only=True):
    """The result of a verification."""

    first: int = 0  # the first record that is kept
    records: int = 0  # number of records ever
    segments: int = 0
    signed: int = 0  # number of records in the newest checkpoint
    checkpoints: int = 0  # checkpoints that were verified
    receipts: int = 0  # receipts that were verified
    problems: list[Problem] = []


class Anchor(msgspec.Struct, frozen=True, array_like=True):
    """A root or chain value that the log has to have behind its first `size` records."""

    size: int
    root: bytes | None = None  # from a checkpoint
    chain: bytes | None = None  # from a receipt

    @property
    def name(self) -> str:
        return "checkpoint" if self.root is not None else "receipt"

    def agrees(self, state: SegmentState) -> bool:
        found = state.peaks.root() if self.root is not None else state.chain
        return found == (self.root or self.chain)


class SegmentResult(msgspec.Struct, array_like=True):
    """The result of one segment."""

    first: int
    before: list[bytes] | None  # peaks in its header; None: it is unreadable
    end: int = 0  # behind the last good record
    after: list[bytes] = []  # peaks there
    kept: int = 0
    problems: list[Problem] = []


def verify(
    folder: Path, *, keys: Sequence[PublicKey] = (), receipts: Iterable[Receipt] = (),
    kept: Sequence[Checkpoint] = (),
    progress: Callable[[int, int], None] = ignore,
) -> Report:  # fmt: skip
    """Verify a log.

    `keys` are the keys whose checkpoints count: those in the folder, unless given. `kept` are
    checkpoints from elsewhere. `progress` is called with the numbers of verified segments and of
    all.

    Raises:
        BadInput: there is no log.
    """
    report = Report()
    keys = keys or known_keys(folder)
    signed = [*_signed(folder, keys, report), *kept]
    signed += [each for each in _kept_as_well(folder, keys, report) if each not in signed]
    files = segments(folder)
    while files and is_blank(files[-1][1].read_bytes()):  # it was made ahead
        files.pop()
    anchors = [Anchor(each.size, root=each.root) for each in signed]
    anchors += [Anchor(sequence + 1, chain=head) for sequence, head in receipts]
    report.signed = max((each.size for each in signed), default=0)
    report.segments = len(files)
    if not files:
        report.problems += [
            Problem(0, f"all records are missing: a {anchor.name} has them")
            for anchor in anchors[:1]
        ]
        return report
    report.first = files[0][0]
    anchors = [
        anchor for anchor in anchors if anchor.size - (anchor.chain is not None) >= report.first
    ]
    report.checkpoints = sum(anchor.root is not None for anchor in anchors)
    report.receipts = sum(anchor.chain is not None for anchor in anchors)
    checked = []
    for each in _all_checked(files, sorted(anchors, key=lambda anchor: anchor.size)):
        checked.append(each)
        report.problems += each.problems
        progress(len(checked), len(files))
    report.records = checked[-1].end
    report.problems += _joints(checked)
    report.problems.sort(key=lambda problem: (problem.sequence or 0, problem.what))
    return report


def known_keys(folder: Path) -> list[PublicKey]:
    """List the keys of a log. Raises BadInput if there is no log."""
    try:
        return [public_key(line) for line in (folder / "key").read_text().splitlines()]
    except OSError as error:
        raise BadInput(
            f"no audit log in {folder}: {error.strerror}",
            "one is made at the first `aios start`; name the folder of another with --log",
        ) from error


def _signed(folder: Path, keys: Sequence[PublicKey], report: Report) -> Iterator[Checkpoint]:
    """Iterate over the checkpoints with valid signatures, rising."""
    path = folder / "checkpoints"
    data = path.read_bytes() if path.exists() else b""
    found, end = split_notes(data)
    if end < len(data):
        report.problems.append(Problem(None, "the last checkpoint is not whole"))
    size = 0
    for note in found:
        try:
            checkpoint = open_note(note, keys)
        except AuditDamaged as error:
            report.problems.append(Problem(None, error.message))
            continue
        if checkpoint.size <= size:
            report.problems.append(Problem(None, f"the checkpoint at {checkpoint.size} comes late"))
        size = max(size, checkpoint.size)
        yield checkpoint


def _kept_as_well(folder: Path, keys: Sequence[PublicKey], report: Report) -> Iterator[Checkpoint]:
    """Return the newest checkpoint from beside the private key, where this is the log of a home."""
    path = newest_of(folder.parent / "keys" / "audit")
    try:
        yield open_note(path.read_bytes(), keys)
    except FileNotFoundError:
        checkpoints = folder / "checkpoints"
        if path.parent.exists() and checkpoints.exists() and checkpoints.stat().st_size:
            report.problems.append(
                Problem(None, f"the newest checkpoint is not in {path} any more")
            )
    except AuditDamaged as error:
        report.problems.append(Problem(None, f"{path}: {error.message}"))


# --- segments ------------------------------------------------------------------------------------


def _all_checked(files: list[tuple[int, Path]], anchors: list[Anchor]) -> Iterator[SegmentResult]:
    """Verify the segments in order, each with its anchors; the last also gets those behind it."""
    ends = [first for first, _ in files[1:]] + [2**63]
    tasks: list[tuple[Path, int, list[Anchor]]] = []
    for (first, path), end in zip(files, ends, strict=True):
        low = (
            first if not tasks else first + 1
        )  # anchors at a boundary belong to the segment before
        tasks.append((path, first, [anchor for anchor in anchors if low <= anchor.size <= end]))
    if len(tasks) <= MAX_SEGMENTS_HERE:
        yield from map(check_file, tasks)
        return
    # Fork: the workers only read and hash, and a fresh import takes as long as five segments.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=fork) as pool:
        yield from pool.map(check_file, tasks)


def check_file(task: tuple[Path, int, list[Anchor]]) -> SegmentResult:
    """Verify a segment; after a problem again, since a record may have been being written."""
    checked, again = None, _check(*task)
    while again.problems and again != checked:
        time.sleep(SETTLE_S)
        checked, again = again, _check(*task)
    return again


def _check(path: Path, first: int, anchors: list[Anchor]) -> SegmentResult:
    data = path.read_bytes()
    try:
        state = begin(data, first)
    except AuditDamaged as error:
        return SegmentResult(first, None, first, problems=[Problem(first, error.message)])
    checked = SegmentResult(first, list(state.peaks.roots), kept=state.kept)
    checked.problems = examine(data, state, end_of(first), anchors)
    checked.end, checked.after = state.sequence, state.peaks.roots
    return checked


def examine(
    data: bytes | bytearray, state: SegmentState, end: int, anchors: Sequence[Anchor]
) -> list[Problem]:
    """Return the problems of a segment's records from `state` on, up to before record `end`.

    `state` moves to behind the last good record. `anchors` rise.
    """
    problems, left = [], list(anchors)
    try:
        while left and left[0].size <= end:
            follow(data, state, left[0].size)
            if state.sequence < left[0].size:
                break
            anchor = left.pop(0)
            if not anchor.agrees(state):
                problems.append(Problem(anchor.size - 1, f"the {anchor.name} says otherwise"))
        follow(data, state, end)
        if data[state.at :].strip(b"\0"):
            problems.append(Problem(state.sequence, "the record is not whole"))
    except AuditDamaged as error:
        problems.append(Problem(state.sequence, error.message))
    else:
        for anchor in left[-1:]:
            missing = f"records {state.sequence} to {anchor.size - 1} are missing"
            problems.append(Problem(state.sequence, f"{missing}: a {anchor.name} has them"))
    return problems


def _joints(checked: list[SegmentResult]) -> Iterator[Problem]:
    """Find segments that do not follow from the one before, or are missing at the beginning."""
    first, kept = checked[0].first, checked[-1].kept
    if first > kept:
        yield Problem(kept, f"records {kept} to {first - 1} are missing")
    for before, after in pairwise(checked):
        if before.end < after.first:
            if not before.problems:
                what = f"records {before.end} to {after.first - 1} are missing"
                yield Problem(before.end, what)
        elif before.end > after.first or after.before not in (None, before.after):
            yield Problem(after.first, "the segment does not follow from the one before")
