"""Checkpoints: the root of the tree at a size, signed. In the text form of C2SP's tlog-checkpoint
and signed-note, so the tools of other transparency logs read them.

    aios/1f0c...                      origin: the log's name
    4711                              size of the tree
    q83v...                           root, base64

    — aios/1f0c... 3q2+7w...          name of the key, base64 of its id and the Ed25519 signature

A public key is the text NAME+ID+KEY, as signed-note has it.

The newest is kept beside the private key as well: whoever cuts the log and the file of checkpoints
back to an older one, without the key, does not have it.
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

from ..lib.files import sync_folder

ED25519 = b"\1"  # signed-note's number of the algorithm
DASH = "— "
NEWEST = "-newest"  # behind the name of the private key


@dataclass(frozen=True)
class PublicKey:
    name: str
    key: bytes  # 32 bytes

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + ED25519 + self.key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(ED25519 + self.key)}"

    def has_signed(self, text: bytes, signature: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text)
        except InvalidSignature:
            return False
        return True


def public_key(text: str) -> PublicKey:
    """Raises BadInput where it is none, or names another id than its own."""
    try:
        name, _, key = text.strip().split("+", 2)
        found = PublicKey(name, base64.b64decode(key, validate=True)[1:])
    except (ValueError, binascii.Error):
        found = PublicKey("", b"")
    if not found.name or len(found.key) != 32 or str(found) != text.strip():
        raise BadInput(f"no public key: {text[:80]!r}", "give what the file audit/key holds")
    return found


class Signer:
    """With the key in the file, which is made, readable by its user alone, if there is none.

    Raises:
        DiskFull: it cannot be made.
        AuditDamaged: the file holds no key, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _write_new(path, Ed25519PrivateKey.generate().private_bytes_raw())
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
        text = f"{self.public.name}\n{size}\n{_base64(root)}\n".encode()
        signature = _base64(self.public.id + self.key.sign(text))
        return text + f"\n{DASH}{self.public.name} {signature}\n".encode()


def newest_of(key: Path) -> Path:
    """Where the newest checkpoint that was signed by that private key is kept as well."""
    return key.with_name(key.name + NEWEST)


def _write_new(path: Path, data: bytes) -> None:
    temp = path.with_suffix(".new")
    temp.touch(mode=0o600)
    with temp.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temp.rename(path)
    sync_folder(path.parent)


@dataclass(frozen=True)
class Checkpoint:
    origin: str
    size: int
    root: bytes
    note: bytes  # as it was signed, with its signatures


def opened(note: bytes, keys: Sequence[PublicKey]) -> Checkpoint:
    """Raises AuditDamaged where none of `keys` has signed it."""
    try:
        text, _, rest = note.decode().partition("\n\n")
        origin, size, root, *_ = text.split("\n")
        signatures = [line.removeprefix(DASH).split(" ") for line in rest.splitlines()]
        found = Checkpoint(origin, int(size), base64.b64decode(root, validate=True), note)
        for name, signature in signatures:
            data = base64.b64decode(signature, validate=True)
            for key in keys:
                theirs = (key.name, key.name, key.id, _base64(data))
                if theirs == (origin, name, data[:4], signature) and key.has_signed(
                    f"{text}\n".encode(), data[4:]
                ):
                    return found
    except ValueError as error:
        raise AuditDamaged("a checkpoint cannot be read") from error
    raise AuditDamaged(f"the checkpoint at {found.size} is signed by none of the log's keys")


def notes(data: bytes) -> tuple[list[bytes], int]:
    """The notes that a file of them holds, and where the last that is whole ends."""
    found, at = [], 0
    while (middle := data.find(b"\n\n", at)) >= 0 and (end := data.find(b"\n\n", middle + 2)) >= 0:
        found.append(data[at : end + 1])
        at = end + 2
    return found, at


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Checkpoints:
    """The file of them, and beside it the public key. `size` and `root` are those of the newest,
    `trouble` is what is wrong with it."""

    def __init__(self, folder: Path, signer: Signer) -> None:
        self.signer, self.size, self.root, self.trouble = signer, 0, b"", ""
        _note_key(folder / "key", signer.public)
        self.path = folder / "checkpoints"
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        found, self.at = notes(self.path.read_bytes())
        os.ftruncate(self.file, self.at)  # a power cut
        try:
            newest = opened(found[-1], [signer.public]) if found else None
            self._take(newest)
            if signer.newest.exists():
                self._take_kept(opened(signer.newest.read_bytes(), [signer.public]))
            elif found:
                self.trouble = f"the newest checkpoint is not in {signer.newest} any more"
        except AuditDamaged as error:
            self.trouble = error.message

    def _take(self, newest: Checkpoint | None) -> None:
        if newest is not None:
            self.size, self.root = newest.size, newest.root

    def _take_kept(self, newest: Checkpoint) -> None:
        """It was written before the one in the file was, or that has been cut back: `verify` has to
        hear of it."""
        if newest.size > self.size:
            if not self._append(newest.note):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._take(newest)

    def add(self, size: int, root: bytes) -> bool:
        """False: there is no room for it."""
        note = self.signer.sign(size, root)
        try:
            _write_new(self.signer.newest, note)
        except OSError as error:
            return _only_full(error)
        if not self._append(note):
            return False
        self.size, self.root = size, root
        return True

    def _append(self, note: bytes) -> bool:
        """False: there is no room for it."""
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
        """Those of trees that ended before record `kept`, which nobody can verify any more."""
        found, _ = notes(self.path.read_bytes())
        stay = b"".join(note + b"\n" for note in found if int(note.split(b"\n")[1]) > kept)
        _write_new(self.path, stay)
        os.close(self.file)
        self.file, self.at = os.open(self.path, os.O_RDWR | os.O_CLOEXEC), len(stay)

    def close(self) -> None:
        os.close(self.file)


def _only_full(error: OSError) -> bool:
    """False, and said: there is no room. Raises what is wrong otherwise."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise error
    print(f"audit: no room for a checkpoint: {error.strerror}", file=sys.stderr, flush=True)
    return False


def _note_key(path: Path, key: PublicKey) -> None:
    """All that have signed in this folder are there, a line each."""
    lines = path.read_text().splitlines() if path.exists() else []
    if str(key) not in lines:
        _write_new(path, "".join(f"{line}\n" for line in [*lines, str(key)]).encode())
