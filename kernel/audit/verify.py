"""Whether a log is as it was written: from its folder alone, without the kernel.

Every frame's chain value is computed again, and the root of the tree at every checkpoint. Segments
are independent of each other, so a large log is verified by a process a processor; then the end of
each has to fit the header of the next.
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

from .checkpoint import Checkpoint, PublicKey, newest_of, notes, opened, public_key
from .segment import State, begin, end_of, follow, is_blank, segments

SETTLE = 0.01  # seconds until what is wrong is looked at again
FEW = 2  # segments that are verified in this process: others take a moment to start


class Problem(msgspec.Struct, frozen=True):
    sequence: int | None  # of the first record concerned; None: of a file beside the segments
    what: str


class Report(msgspec.Struct, kw_only=True):
    first: int = 0  # record that is kept
    records: int = 0  # ever; the sequence of the next
    segments: int = 0
    signed: int = 0  # records of the newest checkpoint
    checkpoints: int = 0  # that were verified
    receipts: int = 0  # likewise
    problems: list[Problem] = []


class Stop(msgspec.Struct, frozen=True, array_like=True):
    """What has to be so behind the first `size` records."""

    size: int
    root: bytes | None = None  # as a checkpoint signed it
    chain: bytes | None = None  # as a receipt has it

    @property
    def name(self) -> str:
        return "checkpoint" if self.root is not None else "receipt"

    def agrees(self, state: State) -> bool:
        found = state.peaks.root() if self.root is not None else state.chain
        return found == (self.root or self.chain)


class Checked(msgspec.Struct, array_like=True):
    """What a segment was found to be."""

    first: int
    before: list[bytes] | None  # peaks in its header; None: that cannot be read
    end: int = 0  # behind its last record that is good
    after: list[bytes] = []  # peaks there
    kept: int = 0
    problems: list[Problem] = []


def verify(
    folder: Path, *, keys: Sequence[PublicKey] = (), receipts: Iterable[Receipt] = (),
    kept: Sequence[Checkpoint] = (),
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Report:  # fmt: skip
    """`keys` are whose checkpoints count: those in the folder, unless given. `kept` are checkpoints
    from elsewhere. `progress` hears how many segments of how many are done.

    Raises:
        BadInput: there is no log.
    """
    report = Report()
    keys = keys or known_keys(folder)
    signed = [*_signed(folder, keys, report), *kept]
    signed += [each for each in _kept_as_well(folder, keys, report) if each not in signed]
    files = segments(folder)
    while files and is_blank(files[-1][1].read_bytes()):  # made ahead
        files.pop()
    stops = [Stop(each.size, root=each.root) for each in signed]
    stops += [Stop(sequence + 1, chain=head) for sequence, head in receipts]
    report.signed = max((each.size for each in signed), default=0)
    report.segments = len(files)
    if not files:
        report.problems += [
            Problem(0, f"all records are missing: a {stop.name} has them") for stop in stops[:1]
        ]
        return report
    report.first = files[0][0]
    stops = [stop for stop in stops if stop.size - (stop.chain is not None) >= report.first]
    report.checkpoints = sum(stop.root is not None for stop in stops)
    report.receipts = sum(stop.chain is not None for stop in stops)
    checked = []
    for each in _all_checked(files, sorted(stops, key=lambda stop: stop.size)):
        checked.append(each)
        report.problems += each.problems
        progress(len(checked), len(files))
    report.records = checked[-1].end
    report.problems += _joints(checked)
    report.problems.sort(key=lambda problem: (problem.sequence or 0, problem.what))
    return report


def known_keys(folder: Path) -> list[PublicKey]:
    """Raises BadInput where there is no log."""
    try:
        return [public_key(line) for line in (folder / "key").read_text().splitlines()]
    except OSError as error:
        raise BadInput(f"no audit log in {folder}: {error.strerror}") from error


def _signed(folder: Path, keys: Sequence[PublicKey], report: Report) -> Iterator[Checkpoint]:
    """The checkpoints whose signatures hold, rising."""
    path = folder / "checkpoints"
    data = path.read_bytes() if path.exists() else b""
    found, end = notes(data)
    if end < len(data):
        report.problems.append(Problem(None, "the last checkpoint is not whole"))
    size = 0
    for note in found:
        try:
            checkpoint = opened(note, keys)
        except AuditDamaged as error:
            report.problems.append(Problem(None, error.message))
            continue
        if checkpoint.size <= size:
            report.problems.append(Problem(None, f"the checkpoint at {checkpoint.size} comes late"))
        size = max(size, checkpoint.size)
        yield checkpoint


def _kept_as_well(folder: Path, keys: Sequence[PublicKey], report: Report) -> Iterator[Checkpoint]:
    """The newest checkpoint from beside the private key, where this is the log of a home."""
    path = newest_of(folder.parent / "keys" / "audit")
    try:
        yield opened(path.read_bytes(), keys)
    except FileNotFoundError:
        checkpoints = folder / "checkpoints"
        if path.parent.exists() and checkpoints.exists() and checkpoints.stat().st_size:
            report.problems.append(
                Problem(None, f"the newest checkpoint is not in {path} any more")
            )
    except AuditDamaged as error:
        report.problems.append(Problem(None, f"{path}: {error.message}"))


# --- segments ------------------------------------------------------------------------------------


def _all_checked(files: list[tuple[int, Path]], stops: list[Stop]) -> Iterator[Checked]:
    """In order; each with the stops that fall into it, the last also with those behind it."""
    ends = [first for first, _ in files[1:]] + [2**63]
    tasks: list[tuple[Path, int, list[Stop]]] = []
    for (first, path), end in zip(files, ends, strict=True):
        low = first if not tasks else first + 1  # what ends the segment before is checked there
        tasks.append((path, first, [stop for stop in stops if low <= stop.size <= end]))
    if len(tasks) <= FEW:
        yield from map(check_file, tasks)
        return
    # Forked: they only read and hash, and to start one that imports takes as long as five segments.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=fork) as pool:
        yield from pool.map(check_file, tasks)


def check_file(task: tuple[Path, int, list[Stop]]) -> Checked:
    """What is wrong is looked at again: it may have been being written just then."""
    checked, again = None, _check(*task)
    while again.problems and again != checked:
        time.sleep(SETTLE)
        checked, again = again, _check(*task)
    return again


def _check(path: Path, first: int, stops: list[Stop]) -> Checked:
    data = path.read_bytes()
    try:
        state = begin(data, first)
    except AuditDamaged as error:
        return Checked(first, None, first, problems=[Problem(first, error.message)])
    checked = Checked(first, list(state.peaks.roots), kept=state.kept)
    checked.problems = examine(data, state, end_of(first), stops)
    checked.end, checked.after = state.sequence, state.peaks.roots
    return checked


def examine(
    data: bytes | bytearray, state: State, end: int, stops: Sequence[Stop]
) -> list[Problem]:
    """What is wrong with the records of a segment from `state` on, which moves to behind the last
    that is good. `end`: the sequence that the segment ends before; `stops` rise."""
    problems, left = [], list(stops)
    try:
        while left and left[0].size <= end:
            follow(data, state, left[0].size)
            if state.sequence < left[0].size:
                break
            stop = left.pop(0)
            if not stop.agrees(state):
                problems.append(Problem(stop.size - 1, f"the {stop.name} says otherwise"))
        follow(data, state, end)
        if data[state.at :].strip(b"\0"):
            problems.append(Problem(state.sequence, "the record is not whole"))
    except AuditDamaged as error:
        problems.append(Problem(state.sequence, error.message))
    else:
        for stop in left[-1:]:
            what = (
                f"records {state.sequence} to {stop.size - 1} are missing: a {stop.name} has them"
            )
            problems.append(Problem(state.sequence, what))
    return problems


def _joints(checked: list[Checked]) -> Iterator[Problem]:
    """Whether each segment follows from the one before, and the first is the one that was kept."""
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
