"""Read records out of the segments: all, matching ones, the last, or those to come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from aios.syscalls.errors import AuditDamaged, NotFound

from .merkle import leaf_hash
from .segment import HASH_BYTES, LENGTH, Record, begin, decode, is_blank, segments

POLL_S = 0.1  # between two reads for new records
MAX_TRIES = 5  # to read a record that is not whole
MAX_HEADER_BYTES, READ_BYTES = 4096, 1 << 20
Entry = tuple[Record, bytes, bytes]  # a record, its body and its chain value


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on a record; None allows anything."""

    agent: str | None = None  # a principal with all below it, or a pid
    call: str | None = None  # `*` stands for any text
    object: str | None = None  # any part of it
    decision: str | None = None  # allowed, denied
    since: float | None = None  # Unix time
    until: float | None = None

    def matches(self, record: Record) -> bool:
        return (
            (self.agent is None or _is_of(record, self.agent))
            and (self.call is None or fnmatchcase(record.call, self.call))
            and (self.object is None or self.object in record.object)
            and (self.decision is None or self.decision == _decision(record))
            and (self.since is None or record.wall >= self.since * 1e9)
            and (self.until is None or record.wall < self.until * 1e9)
        )


def _decision(record: Record) -> str:
    """Return how the kernel or Linux (docs/walls.md) decided."""
    if record.kind in ("intent", "read"):
        return "allowed"
    return "denied" if record.kind == "denied" or record.call == "process.refused" else ""


def _is_of(record: Record, agent: str) -> bool:
    if agent.isdigit():
        return record.pid == int(agent)
    return record.principal == agent or record.principal.startswith(agent + "/")


def plain(record: Record) -> dict[str, Any]:
    """Return a record's fields by name, with hashes in hex."""
    found = msgspec.structs.asdict(record)
    return found | {"boot": record.boot.hex(), "args": record.args.hex()}


def entries(folder: Path, first: int = 0) -> Iterator[Entry]:
    """Iterate over the records from `first` on.

    Raises:
        AuditDamaged: a record does not follow from the one before; those before it came.
    """
    found = segments(folder)
    ends = [start for start, _ in found[1:]] + [2**63]
    for (start, path), end in zip(found, ends, strict=True):
        if end > first:
            for entry in _of_file(path, start):
                if entry[0].sequence >= first:
                    yield entry


def _of_file(path: Path, start: int) -> Iterator[Entry]:
    """Iterate over a segment's records, retrying at the end, where one may be being written."""
    at = 0
    for _ in range(MAX_TRIES):
        data = path.read_bytes()
        if is_blank(data):  # it was made ahead
            return
        before, at = at, at or begin(data, start).at
        for entry, end in _of_segment(data, at):
            yield entry
            at = end
        if is_blank(data[at:]):
            return
        time.sleep(POLL_S if before == at else 0)
    raise AuditDamaged(f"a record in {path.name} was changed, or is not whole")


def _of_segment(data: bytes, at: int) -> Iterator[tuple[Entry, int]]:
    """Iterate over the linked records from `at` on, with the end of each."""
    while at + LENGTH.size <= len(data):
        (length,) = LENGTH.unpack_from(data, at)
        end = at + LENGTH.size + length + HASH_BYTES
        body, chain = data[at + LENGTH.size : end - HASH_BYTES], data[end - HASH_BYTES : end]
        if not length or chain != sha256(data[at - HASH_BYTES : at] + leaf_hash(body)).digest():
            return
        yield (decode(body), body, chain), end
        at = end


def last(folder: Path, count: int, wanted: Filter) -> list[Record]:
    """Return the last `count` records that match, rising."""
    found: list[Record] = []
    for start, path in reversed(segments(folder)):
        here = [record for record, _, _ in _of_file(path, start)]
        found = [record for record in here if wanted.matches(record)] + found
        if len(found) >= count:
            break
    return found[max(0, len(found) - count) :]


def one(folder: Path, sequence: int) -> Entry:
    """Return a record. Raises NotFound if there is no such record, or it is not kept any more."""
    for entry in entries(folder, sequence):
        if entry[0].sequence == sequence:
            return entry
        break
    raise NotFound(f"no record {sequence} in {folder}", "`aios audit tail` shows the last")


def follow(folder: Path, sequence: int) -> Iterator[Record]:
    """Iterate over the records from `sequence` on, without end."""
    start, at = -1, 0
    while True:
        here, path = max(each for each in segments(folder) if each[0] <= sequence)
        with path.open("rb") as file:
            head = file.read(MAX_HEADER_BYTES)
            if here != start and not is_blank(head):
                start, at = here, begin(head, here).at
            file.seek(max(0, at - HASH_BYTES))
            data = file.read(READ_BYTES) if here == start else b""
        end = HASH_BYTES
        for (record, _, _), end in _of_segment(data, HASH_BYTES):  # noqa: B007 (`end` is used below)
            if record.sequence >= sequence:
                sequence = record.sequence + 1
                yield record
        at += end - HASH_BYTES
        if end == HASH_BYTES:
            time.sleep(POLL_S)
