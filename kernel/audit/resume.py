"""What a kernel finds of the log when it starts, and where it goes on.

Only the last segment is read. What is not whole behind its last record is cut off: a power cut, or
a kernel that died while it wrote. That more is missing than that is known from the checkpoints:
then the log goes on in a new segment behind the last that was signed, the leaves of what was lost
count as zeros, and `aios audit verify` fails from then on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from aios.syscalls.errors import AuditDamaged

from ..lib.files import write_zeros
from .merkle import Peaks, blank
from .segment import State, begin, end_of, follow, is_blank, segments


@dataclass
class Resumed:
    peaks: Peaks
    chain: bytes = b""
    end: int = 0  # the sequence that ends the segment; the next one: another is to be begun
    kept: int = 0  # the first segment that there is
    at: int = 0  # in the file, where the next frame goes
    room: int = 0  # bytes of the file
    files: list[int] = field(default_factory=list)  # descriptors, the last is to be written
    sizes: dict[int, int] = field(default_factory=dict)  # bytes of each segment
    torn: int = 0  # bytes that were cut off
    trouble: str = ""


def resume(folder: Path, signed: int, root: bytes = b"") -> Resumed:
    """`signed`: records of the newest checkpoint, which has `root`."""
    found = segments(folder)
    while found and is_blank(found[-1][1].read_bytes()):  # made ahead
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
            torn += len(data.rstrip(b"\0"))  # nothing of it was ever synced
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
    return _lost(found, signed, 0, "they are not there") if signed else Resumed(Peaks(), torn=torn)


def _lost(found: list[tuple[int, Path]], signed: int, at: int, why: str) -> Resumed:
    sizes = {first: path.stat().st_size for first, path in found}
    trouble = f"records {at} to {signed - 1} were signed, and are lost: {why}"
    return Resumed(
        blank(signed), end=signed, kept=min(sizes, default=signed), sizes=sizes, trouble=trouble
    )


def _go_on(found: list[tuple[int, Path]], data: bytes, state: State, torn: int) -> Resumed:
    for first, path in [each for each in found if each[0] < state.kept]:
        path.unlink()  # the kernel before was about to
        found.remove((first, path))
    # Those of the kernel before may not have been synced.
    files = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for _, path in found[-2:]]
    rest = len(data[state.at :].rstrip(b"\0"))
    # Written again: a sync that has failed may have left pages that count as synced.
    os.pwrite(files[-1], data[: state.at], 0)
    write_zeros(files[-1], state.at, state.at + rest)
    return Resumed(
        state.peaks, state.chain, end=end_of(found[-1][0]), kept=found[0][0], at=state.at,
        room=len(data), files=files, torn=torn + rest,
        sizes={first: path.stat().st_size for first, path in found},
    )  # fmt: skip
