"""What goes to disk, and back: checked, or sealed where the setting `encrypt` says so.

A seal is AES-256-GCM. It holds for one place, a table and a key there, so what is moved or changed
anywhere is found out. Each process seals with a key of its own, derived from the data key and a
random session, and counts its nonces: none comes twice. Data keys have ids, so what was sealed
before a rotation is opened still.
"""

from __future__ import annotations

import hmac
import itertools
import os
import secrets
import struct
import zlib
from functools import lru_cache
from typing import Any, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY, KEY_ID, SESSION, TAG = 32, 4, 12, 16  # bytes
HEADER = struct.Struct(f">{KEY_ID}s{SESSION}sQ")  # which data key, which session, which of it
NONCE = slice(HEADER.size - 12, HEADER.size)  # ends in the count; the rest is the session's
CRC = struct.Struct("<I")
SESSIONS = 256  # whose keys are at hand


class Damaged(Exception):
    """It is not what was kept at this place, or was sealed with a key that is not there."""


class Keeper(Protocol):
    """Both ways to keep data at a place: `table`, and `key` there."""

    overhead: int  # bytes that are added

    def close(self, table: str, key: bytes, data: Any) -> bytes:
        """`data` is bytes, or another buffer."""

    def open(self, table: str, key: bytes, data: Any) -> bytes:
        """Raises Damaged."""


class Checked:
    """In clear, behind a CRC-32 of the key and the data."""

    overhead = CRC.size

    def close(self, table: str, key: bytes, data: Any) -> bytes:
        return b"".join((CRC.pack(zlib.crc32(data, zlib.crc32(key))), data))

    def open(self, table: str, key: bytes, data: Any) -> bytes:
        value = bytes(data[CRC.size :])
        if len(data) < CRC.size or CRC.unpack_from(data)[0] != zlib.crc32(value, zlib.crc32(key)):
            raise Damaged("its checksum is another's")
        return value


class Ring(msgspec.Struct):
    """The data keys by their ids; what is new is sealed with the current one."""

    keys: dict[bytes, bytes]
    current: bytes

    @classmethod
    def new(cls) -> Ring:
        return cls({}, b"").rotated()

    def rotated(self) -> Ring:
        current = secrets.token_bytes(KEY_ID)
        return Ring({**self.keys, current: secrets.token_bytes(KEY)}, current)


class Seal:
    """Any thread may use it."""

    overhead = HEADER.size + TAG

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.id = ring.current
        self.session = secrets.token_bytes(SESSION)
        self.count = itertools.count()  # `next` of it is one step to other threads
        self._cipher = lru_cache(SESSIONS)(self._derived)
        self.cipher = self._derived(self.id, self.session)
        names = hmac.digest(ring.keys[self.id], b"aios names", "sha256")
        self.names = Cipher(algorithms.AES(names), modes.ECB())  # one block each

    def _derived(self, key_id: bytes, session: bytes) -> AESGCM:
        key = self.ring.keys.get(key_id)
        if key is None:
            raise Damaged(f"it is sealed with the key {key_id.hex()}, which the ring has not")
        return AESGCM(hmac.digest(key, b"aios seal" + session, "sha256"))

    def close(self, table: str, key: bytes, data: Any) -> bytes:
        head = HEADER.pack(self.id, self.session, next(self.count))
        return head + self.cipher.encrypt(head[NONCE], data, _place(table, key))

    def open(self, table: str, key: bytes, data: Any) -> bytes:
        if len(data) < self.overhead:
            raise Damaged("it is cut short")
        head = bytes(data[: HEADER.size])
        key_id, session, _ = HEADER.unpack(head)
        try:
            cipher = self._cipher(key_id, session)
            return cipher.decrypt(head[NONCE], data[HEADER.size :], _place(table, key))
        except InvalidTag:
            raise Damaged("it is not what was sealed there") from None

    def hide(self, name: bytes) -> bytes:
        """What stands for a hash of 16 bytes in clear: always the same under one data key."""
        return self.names.encryptor().update(name)

    def show(self, hidden: bytes) -> bytes:
        return self.names.decryptor().update(hidden)


def _place(table: str, key: bytes) -> bytes:
    return table.encode() + b"\0" + key


def inherited(fd: int) -> Seal:
    """With the keys that init left in `fd`, which is closed."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)
    return Seal(msgspec.msgpack.decode(data, type=Ring))
