"""Make proofs out of the segments, and check proofs with nothing but a public key.

A proof that a record is in the log is the text of C2SP's tlog-proof, whose line `extra` is the
record's body. A proof of growth has the earlier size and the hashes, as C2SP's tlog-witness wants
them. Both end with the checkpoint that they lead to.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aios.syscalls.errors import AuditDamaged, BadInput, NotFound

from .checkpoint import Checkpoint, PublicKey, open_kept, open_note, split_notes, to_base64
from .merkle import (
    Peaks,
    consistency,
    inclusion,
    is_consistent,
    is_included,
    leaf_hash,
    node_hash,
    split,
)
from .read import MAX_HEADER_BYTES, entries, one, plain
from .segment import begin, decode, is_blank, segments
from .verify import known_keys

PROOF = "c2sp.org/tlog-proof@v1"
PROOF_HINT = "give what `aios audit prove` printed"


class LogTree:
    """The roots of ranges of records, from the segments' headers or else from the records.

    Few segments have to be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[tuple[int, int], bytes] = {}
        self.starts: list[int] = []
        for first, path in segments(folder):
            with path.open("rb") as file:
                head = file.read(MAX_HEADER_BYTES)
            if is_blank(head):
                continue
            self.starts.append(first)
            end = 0
            for root in begin(head, first).peaks.roots:
                size = 1 << (first - end).bit_length() - 1
                self.known[end, end + size] = root
                end += size

    def root(self, first: int, end: int) -> bytes:
        """Return the root of a range. Raises NotFound if its records are not kept any more."""
        known = self.known.get((first, end))
        if known is None and any(first < start < end for start in self.starts):
            middle = first + split(end - first)
            known = node_hash(self.root(first, middle), self.root(middle, end))
        elif known is None:
            known = self._of_records(first, end)
        self.known[first, end] = known
        return known

    def _of_records(self, first: int, end: int) -> bytes:
        peaks = Peaks()
        if self.starts and first >= self.starts[0]:
            for record, body, _ in entries(self.folder, first):
                if record.sequence >= end:
                    break
                peaks.push(leaf_hash(body))
        if peaks.size != end - first:
            raise NotFound(f"records {first} to {end - 1} are not kept any more")
        return peaks.root()


def newest(folder: Path) -> Checkpoint:
    """Return the newest checkpoint.

    Raises:
        NotFound: nothing has been signed.
        AuditDamaged: the signature does not hold.
    """
    keys, path = known_keys(folder), folder / "checkpoints"
    found, _ = split_notes(path.read_bytes() if path.exists() else b"")
    if not found:
        raise NotFound(f"no checkpoint in {folder}", "a running system signs every few seconds")
    return open_note(found[-1], keys)


def prove(folder: Path, sequence: int) -> str:
    """Prove that record `sequence` is below the newest checkpoint.

    Raises:
        NotFound: there is no such record, or it is not signed yet.
        AuditDamaged: the log does not lead to its checkpoint.
    """
    checkpoint, (_, body, _) = newest(folder), one(folder, sequence)
    if sequence >= checkpoint.size:
        raise NotFound(f"record {sequence} is not signed yet", "it is in a few seconds")
    path = inclusion(sequence, checkpoint.size, LogTree(folder).root)
    if not is_included(leaf_hash(body), sequence, checkpoint.size, path, checkpoint.root):
        raise AuditDamaged("the log does not lead to its newest checkpoint")
    lines = [PROOF, f"extra {to_base64(body)}", f"index {sequence}", *map(to_base64, path)]
    return "\n".join(lines) + "\n\n" + checkpoint.note.decode()


def prove_growth(folder: Path, size: int) -> str:
    """Prove that the newest checkpoint's tree begins with the first `size` records.

    Raises:
        NotFound: the log has not that many records, or not any more.
    """
    checkpoint = newest(folder)
    if not 0 < size <= checkpoint.size:
        raise NotFound(f"{checkpoint.size} records are signed, not {size}")
    path = consistency(size, checkpoint.size, LogTree(folder).root)
    return "\n".join([f"old {size}", *map(to_base64, path)]) + "\n\n" + checkpoint.note.decode()


def check(text: str, keys: Sequence[PublicKey], before: str | None) -> dict[str, Any]:
    """Check a proof and return what it proves. `before` is the checkpoint that growth starts from.

    Raises:
        BadInput: it is no proof.
        AuditDamaged: it proves nothing.
    """
    try:
        head, _, note = text.partition("\n\n")
        lines = dict(line.split(" ", 1) for line in head.splitlines() if " " in line)
        hashes = [line for line in head.splitlines() if " " not in line and line != PROOF]
        path = [base64.b64decode(line, validate=True) for line in hashes]
        index = int(lines["index"] if "index" in lines else lines["old"])
        body = base64.b64decode(lines.get("extra", ""), validate=True)
    except (ValueError, KeyError) as error:
        raise BadInput("this is no proof", PROOF_HINT) from error
    checkpoint = open_note(note.encode(), keys)
    if "index" in lines:
        if not is_included(leaf_hash(body), index, checkpoint.size, path, checkpoint.root):
            raise AuditDamaged("the proof does not lead to its checkpoint")
        return {"record": plain(decode(body)), "signed": checkpoint.size}
    if before is None:
        raise BadInput("growth is proved from an earlier checkpoint", "give --checkpoint FILE")
    old = open_kept(before, keys)
    if old.size != index or not is_consistent(
        index, checkpoint.size, path, old.root, checkpoint.root
    ):
        raise AuditDamaged("the proof does not lead from the one checkpoint to the other")
    return {"grown": [index, checkpoint.size]}
