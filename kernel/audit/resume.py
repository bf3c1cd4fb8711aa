"""Find out where a starting kernel goes on in the log.

Only the last segment is read. Bytes behind its last whole record are cut off: the rest of a
power cut, or of a kernel that died while it wrote. Checkpoints tell when more is missing. Then the
log goes on in a new segment behind the last signed record, the leaves of lost records count as
zeros, and `aios audit verify` fails from then on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from aios.syscalls.errors import AuditDamaged

from ..lib.files import write_zeros
from .merkle import Peaks, blank
from .segment import SegmentState, begin, end_of, follow, is_blank, segments


@dataclass
class ResumedLog:
    """The state that a log goes on from."""

    peaks: Peaks
    chain: bytes = b""
    end: int = 0  # where the segment ends; if that is reached, begin another
    kept: int = 0  # the first segment
    at: int = 0  # position of the next frame in the file
    room: int = 0  # size of the file
    files: list[int] = field(default_factory=list)  # descriptors; the last is written
    sizes: dict[int, int] = field(default_factory=dict)  # bytes of each segment
    torn: int = 0  # bytes that were cut off
    trouble: str = ""


def resume(folder: Path, signed: int, root: bytes = b"") -> ResumedLog:
    """Return the state to go on from. The newest checkpoint is of `signed` records, and has
    `root`.
    """
    found = segments(folder)
    while found and is_blank(found[-1][1].read_bytes()):  # it was made ahead
        found.pop()[1].unlink()
    torn = 0
    while found:
        first, path = found[-1]
        data = path.read_bytes()
        try:
            state, trouble = begin(data, first), ""
        except AuditDamaged as error:
            if first < signed:
                return _lost(found, signed, 0, error.message)
            torn += len(data.rstrip(b"\0"))  # none of it was synced
            path.unlink()
            found.pop()
            continue
        try:
            follow(data, state, min(signed, end_of(first)))
            if signed and state.sequence == signed and state.peaks.root() != root:
                return _lost(found, signed, first, "others are in their place")
            follow(data, state, end_of(first))
        except AuditDamaged as error:
            trouble = error.message
        if state.sequence < signed:
            return _lost(found, signed, state.sequence, trouble or "they are not there")
        return _go_on(found, data, state, torn)
    return (
        _lost(found, signed, 0, "they are not there") if signed else ResumedLog(Peaks(), torn=torn)
    )


def _lost(found: list[tuple[int, Path]], signed: int, at: int, why: str) -> ResumedLog:
    sizes = {first: path.stat().st_size for first, path in found}
    trouble = f"records {at} to {signed - 1} were signed, and are lost: {why}"
    return ResumedLog(
        blank(signed), end=signed, kept=min(sizes, default=signed), sizes=sizes, trouble=trouble
    )


def _go_on(
    found: list[tuple[int, Path]], data: bytes, state: SegmentState, torn: int
) -> ResumedLog:
    for first, path in [each for each in found if each[0] < state.kept]:
        path.unlink()  # the previous kernel was about to do this
        found.remove((first, path))
    # Sync these: the previous kernel may not have.
    files = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for _, path in found[-2:]]
    rest = len(data[state.at :].rstrip(b"\0"))
    # Write again: after a failed sync Linux counts the pages as clean.
    os.pwrite(files[-1], data[: state.at], 0)
    write_zeros(files[-1], state.at, state.at + rest)
    return ResumedLog(
        state.peaks, state.chain, end=end_of(found[-1][0]), kept=found[0][0], at=state.at,
        room=len(data), files=files, torn=torn + rest,
        sizes={first: path.stat().st_size for first, path in found},
    )  # fmt: skip
