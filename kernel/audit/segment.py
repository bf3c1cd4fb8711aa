"""The format of a segment: a file of frames, each with a link of the hash chain, then zeros.

    frame    length of the body (4 bytes, little-endian), body (msgpack), chain (32 bytes)

The first frame is the header, the others are records. The header's chain value is the SHA-256 of
its body. A record's is the SHA-256 of the value before it and the record's leaf, which is also the
leaf of the Merkle tree: SHA-256 of a zero byte and the body. The header has the tree's peaks, so
each chain value stands for all records before it, and segments are verified independently.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from aios.syscalls.errors import AuditDamaged

from .merkle import Peaks

SEGMENT_RECORDS = 1 << 14  # a full segment is a perfect subtree
MAGIC, FORMAT = "aios-audit", 1
LENGTH = struct.Struct("<I")
HASH_BYTES = 32
SUFFIX = ".audit"


class Header(msgspec.Struct, array_like=True):
    """The first frame of a segment."""

    magic: str
    format: int
    first: int  # sequence of the first record
    kept: int  # sequence of the first segment kept when this one began
    roots: list[bytes]  # peaks of the tree of all records before it


class Record(msgspec.Struct, array_like=True):
    """One record of the log."""

    sequence: int
    boot: bytes  # id of the kernel that wrote it
    wall: int  # ns since 1970
    clock: int  # monotonic, ns
    pid: int  # of the caller; 0: it has not said hello
    principal: str  # of an agent; "": a person's client, or the kernel
    kind: str  # intent, outcome, read, denied, note
    call_id: int
    call: str
    object: str  # the object of the call
    args: bytes  # SHA-256 of the arguments as received
    rule: str  # the deciding rule
    result: str  # "ok" or an error code, of an outcome or a denial
    intent: int  # sequence of an outcome's intent; 0: an earlier kernel's


encode = msgspec.msgpack.Encoder().encode
decode_header = msgspec.msgpack.Decoder(Header).decode
decode = msgspec.msgpack.Decoder(Record).decode


@dataclass
class SegmentState:
    """The state behind a record, from which the segment can go on."""

    at: int  # position in the file
    chain: bytes
    peaks: Peaks
    kept: int

    @property
    def sequence(self) -> int:
        """The sequence of the next record."""
        return self.peaks.size


def end_of(sequence: int) -> int:
    """Return the sequence before which the segment with this record ends."""
    return (sequence // SEGMENT_RECORDS + 1) * SEGMENT_RECORDS


def encode_frame(body: bytes, chain: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body + chain


def header(peaks: Peaks, kept: int) -> tuple[bytes, bytes]:
    """Return the frame of a header, and its chain value."""
    body = encode(Header(MAGIC, FORMAT, peaks.size, kept, peaks.roots))
    chain = sha256(body).digest()
    return encode_frame(body, chain), chain


def path_of(folder: Path, first: int) -> Path:
    return folder / f"{first:016d}{SUFFIX}"


def segments(folder: Path) -> list[tuple[int, Path]]:
    """List the sequence of the first record and the file of each segment, rising."""
    return sorted((int(path.stem), path) for path in folder.glob(f"*{SUFFIX}"))


def is_blank(data: bytes) -> bool:
    """Tell whether a file was only made ahead, and has no frame yet."""
    return not data.strip(b"\0")


def begin(data: bytes, first: int) -> SegmentState:
    """Return the state behind the header of segment `first`.

    Raises:
        AuditDamaged: it has none.
    """
    try:
        (length,) = LENGTH.unpack_from(data)
        body = data[LENGTH.size : LENGTH.size + length]
        found = decode_header(body)
        peaks = Peaks(found.first, found.roots)
    except (struct.error, msgspec.DecodeError, ValueError) as error:
        raise AuditDamaged("the header cannot be read") from error
    at = LENGTH.size + length + HASH_BYTES
    chain = sha256(body).digest()
    if data[at - HASH_BYTES : at] != chain:
        raise AuditDamaged("the header was changed")
    if (found.magic, found.first) != (MAGIC, first):
        raise AuditDamaged("the header is another segment's")
    if found.format > FORMAT:
        raise AuditDamaged(f"the format is {found.format}, this AIOS knows up to {FORMAT}")
    return SegmentState(at, chain, peaks, found.kept)


def follow(data: bytes | bytearray, state: SegmentState, until: int) -> None:
    """Move `state` on over the records before `until`, or before the zeros behind the last.

    Raises:
        AuditDamaged: the next record is not whole, or was changed; `state` is before it.
    """
    at, chain, peaks, push = state.at, state.chain, state.peaks, state.peaks.push
    zero, fits = b"\0", len(data) - LENGTH.size
    try:
        for sequence in range(peaks.size, until):
            (length,) = LENGTH.unpack_from(data, at) if at <= fits else (0,)
            if not length:
                break
            end = at + 4 + length
            body = data[at + 4 : end]
            leaf = sha256(zero + body).digest()
            link = sha256(chain + leaf).digest()
            if data[end : end + HASH_BYTES] != link:
                raise AuditDamaged("the record was changed, or is not whole")
            if decode(body).sequence != sequence:
                raise AuditDamaged("the record has another sequence")
            push(leaf)
            chain, at = link, end + HASH_BYTES
    except msgspec.DecodeError as error:
        raise AuditDamaged(f"the record cannot be read: {error}") from error
    finally:
        state.at, state.chain = at, chain
