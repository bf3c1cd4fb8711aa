"""Checkpoints: the signed root of the tree at a size.

They have the text form of C2SP's tlog-checkpoint and signed-note, so the tools of other
transparency logs can read them.

    aios/1f0c...                      origin: the log's name
    4711                              size of the tree
    q83v...                           root, base64

    — aios/1f0c... 3q2+7w...          name of the key, base64 of its id and the Ed25519 signature

A public key is the text NAME+ID+KEY, as signed-note has it. The newest checkpoint is kept beside
the private key too: it is missing after someone without the key cuts back the log and the file of
checkpoints.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from aios.syscalls.errors import AuditDamaged, BadInput, DiskFull

from ..lib.files import replace

ED25519 = b"\1"  # the algorithm's number in signed-note
DASH = "— "
KEPT = "give one checkpoint as audit/checkpoints has them, and --key if another log signed it"
NEWEST_SUFFIX = "-newest"  # suffix of the private key's name


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class PublicKey:
    """A named Ed25519 key."""

    name: str
    key: bytes  # 32 bytes

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + ED25519 + self.key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{to_base64(ED25519 + self.key)}"

    def has_signed(self, text: bytes, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text)
        except InvalidSignature:
            return False
        return True


def public_key(text: str) -> PublicKey:
    """Parse a public key. Raises BadInput if it is none, or has another id than its own."""
    try:
        name, _, key = text.strip().split("+", 2)
        found = PublicKey(name, base64.b64decode(key, validate=True)[1:])
    except (ValueError, binascii.Error):
        found = PublicKey("", b"")
    if not found.name or len(found.key) != 32 or str(found) != text.strip():
        raise BadInput(f"no public key: {text[:80]!r}", "give what the file audit/key holds")
    return found


class Signer:
    """Sign with the key in a file; the file is made if there is none.

    Raises:
        DiskFull: it cannot be made.
        AuditDamaged: the file holds no key, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                replace(path, Ed25519PrivateKey.generate().private_bytes_raw())
        except OSError as error:
            raise DiskFull(f"no key in {path}: {error.strerror}") from error
        try:
            self.key = Ed25519PrivateKey.from_private_bytes(path.read_bytes())
        except (OSError, ValueError) as error:
            hint = "restore it, or move it away: then another is made"
            raise AuditDamaged(f"the key {path} cannot be used: {error}", hint) from error
        public = self.key.public_key().public_bytes_raw()
        self.public = PublicKey("aios/" + sha256(public).hexdigest()[:16], public)
        self.newest = newest_of(path)

    def sign(self, size: int, root: bytes) -> bytes:
        text = f"{self.public.name}\n{size}\n{to_base64(root)}\n".encode()
        signature = to_base64(self.public.id + self.key.sign(text))
        return text + f"\n{DASH}{self.public.name} {signature}\n".encode()


def newest_of(key: Path) -> Path:
    """Return where the newest checkpoint of a private key is kept."""
    return key.with_name(key.name + NEWEST_SUFFIX)


@dataclass(frozen=True)
class Checkpoint:
    """The size and root of a tree, with the signed note."""

    origin: str
    size: int
    root: bytes
    note: bytes  # the signed text, with its signatures


def open_note(note: bytes, keys: Sequence[PublicKey]) -> Checkpoint:
    """Verify a note. Raises AuditDamaged if none of `keys` has signed it."""
    try:
        text, _, rest = note.decode().partition("\n\n")
        origin, size, root, *_ = text.split("\n")
        signatures = [line.removeprefix(DASH).split(" ") for line in rest.splitlines()]
        found = Checkpoint(origin, int(size), base64.b64decode(root, validate=True), note)
        for name, signature in signatures:
            data = base64.b64decode(signature, validate=True)
            for key in keys:
                theirs = (key.name, key.name, key.id, to_base64(data))
                if theirs == (origin, name, data[:4], signature) and key.has_signed(
                    f"{text}\n".encode(), data[4:]
                ):
                    return found
    except ValueError as error:
        raise AuditDamaged("a checkpoint cannot be read") from error
    raise AuditDamaged(f"the checkpoint at {found.size} is signed by none of the log's keys")


def open_kept(note: str, keys: Sequence[PublicKey]) -> Checkpoint:
    """Verify a note that was kept elsewhere. Raises AuditDamaged as `open_note` does."""
    try:
        return open_note(note.encode(), keys)
    except AuditDamaged as error:
        raise AuditDamaged(f"what was kept: {error.message}", KEPT) from error


def split_notes(data: bytes) -> tuple[list[bytes], int]:
    """Split a file into its notes, and return where the last whole one ends."""
    found, at = [], 0
    while (middle := data.find(b"\n\n", at)) >= 0 and (end := data.find(b"\n\n", middle + 2)) >= 0:
        found.append(data[at : end + 1])
        at = end + 2
    return found, at


class Checkpoints:
    """The file of checkpoints, with the public key beside it.

    `size` and `root` are those of the newest; `trouble` says what is wrong with it.
    """

    def __init__(self, folder: Path, signer: Signer) -> None:
        self.signer, self.size, self.root, self.trouble = signer, 0, b"", ""
        _note_key(folder / "key", signer.public)
        self.path = folder / "checkpoints"
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        found, self.at = split_notes(self.path.read_bytes())
        os.ftruncate(self.file, self.at)  # the rest of a power cut
        try:
            newest = open_note(found[-1], [signer.public]) if found else None
            self._take(newest)
            if signer.newest.exists():
                self._take_kept(open_note(signer.newest.read_bytes(), [signer.public]))
            elif found:
                self.trouble = f"the newest checkpoint is not in {signer.newest} any more"
        except AuditDamaged as error:
            self.trouble = error.message

    def _take(self, newest: Checkpoint | None) -> None:
        if newest is not None:
            self.size, self.root = newest.size, newest.root

    def _take_kept(self, newest: Checkpoint) -> None:
        """Append the kept checkpoint if the file has only older ones.

        Either the file was cut back, which `verify` has to notice, or it was not written yet.
        """
        if newest.size > self.size:
            if not self._append(newest.note):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._take(newest)

    def add(self, size: int, root: bytes) -> bool:
        """Sign and append a checkpoint. Return False if there is no room."""
        note = self.signer.sign(size, root)
        try:
            replace(self.signer.newest, note)
        except OSError as error:
            return _only_full(error)
        if not self._append(note):
            return False
        self.size, self.root = size, root
        return True

    def _append(self, note: bytes) -> bool:
        """Append a note to the file. Return False if there is no room."""
        note += b"\n"
        try:
            if os.pwrite(self.file, note, self.at) < len(note):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self.file)
        except OSError as error:
            os.ftruncate(self.file, self.at)
            return _only_full(error)
        self.at += len(note)
        return True

    def drop(self, kept: int) -> None:
        """Remove the checkpoints of trees that ended before record `kept`: nobody can verify them
        any more.
        """
        found, _ = split_notes(self.path.read_bytes())
        stay = b"".join(note + b"\n" for note in found if int(note.split(b"\n")[1]) > kept)
        replace(self.path, stay)
        os.close(self.file)
        self.file, self.at = os.open(self.path, os.O_RDWR | os.O_CLOEXEC), len(stay)

    def close(self) -> None:
        os.close(self.file)


def _only_full(error: OSError) -> bool:
    """Report a full disk and return False; raise any other error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise error
    print(f"audit: no room for a checkpoint: {error.strerror}", file=sys.stderr, flush=True)
    return False


def _note_key(path: Path, key: PublicKey) -> None:
    """Add a key to the file that lists all keys that have signed here, a line each."""
    lines = path.read_text().splitlines() if path.exists() else []
    if str(key) not in lines:
        replace(path, "".join(f"{line}\n" for line in [*lines, str(key)]).encode())
