"""Encode values for the disk: with a checksum, or encrypted where the setting `encrypt` says so.

Encryption is AES-256-GCM. The table and the key of a value are authenticated too, so a value that
was changed or moved is detected. Each process encrypts with a key of its own, derived from the data
key and a random session, and counts its nonces: none is used twice. Data keys have ids, so values
from before a rotation can still be decrypted.
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

KEY_BYTES, KEY_ID_BYTES, SESSION_BYTES, TAG_BYTES = 32, 4, 12, 16
HEADER = struct.Struct(f">{KEY_ID_BYTES}s{SESSION_BYTES}sQ")  # id of the data key, session, count
NONCE = slice(HEADER.size - 12, HEADER.size)  # the end of the session, and the count
CRC = struct.Struct("<I")
MAX_SESSIONS = 256  # whose keys are cached


class Damaged(Exception):
    """A value is not the one that was encoded for its key, or its data key is missing."""


class ValueCodec(Protocol):
    """Encode and decode values, each for one `table` and `key`."""

    overhead: int  # bytes that it adds to a value

    def encode(self, table: str, key: bytes, data: Any) -> bytes:
        """Encode bytes or another buffer."""

    def decode(self, table: str, key: bytes, data: Any) -> bytes:
        """Decode a value. Raises Damaged."""


class ChecksumCodec:
    """Store values in clear, behind a CRC-32 of key and value."""

    overhead = CRC.size

    def encode(self, table: str, key: bytes, data: Any) -> bytes:
        return b"".join((CRC.pack(zlib.crc32(data, zlib.crc32(key))), data))

    def decode(self, table: str, key: bytes, data: Any) -> bytes:
        value = bytes(data[CRC.size :])
        if len(data) < CRC.size or CRC.unpack_from(data)[0] != zlib.crc32(value, zlib.crc32(key)):
            raise Damaged("its checksum is another's")
        return value


class KeyRing(msgspec.Struct):
    """The data keys by their ids; new values are encrypted with the current one."""

    keys: dict[bytes, bytes]
    current: bytes

    @classmethod
    def new(cls) -> KeyRing:
        return cls({}, b"").rotated()

    def rotated(self) -> KeyRing:
        current = secrets.token_bytes(KEY_ID_BYTES)
        return KeyRing({**self.keys, current: secrets.token_bytes(KEY_BYTES)}, current)


class AeadCodec:
    """Encrypt values. Thread-safe."""

    overhead = HEADER.size + TAG_BYTES

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self.id = ring.current
        self.session = secrets.token_bytes(SESSION_BYTES)
        self.count = itertools.count()  # `next` is atomic
        self._cipher = lru_cache(MAX_SESSIONS)(self._derive)
        self.cipher = self._derive(self.id, self.session)
        names = hmac.digest(ring.keys[self.id], b"aios names", "sha256")
        self.names = Cipher(algorithms.AES(names), modes.ECB())  # one block each

    def _derive(self, key_id: bytes, session: bytes) -> AESGCM:
        key = self.ring.keys.get(key_id)
        if key is None:
            raise Damaged(f"it is sealed with the key {key_id.hex()}, which the ring has not")
        return AESGCM(hmac.digest(key, b"aios seal" + session, "sha256"))

    def encode(self, table: str, key: bytes, data: Any) -> bytes:
        head = HEADER.pack(self.id, self.session, next(self.count))
        return head + self.cipher.encrypt(head[NONCE], data, _associated_data(table, key))

    def decode(self, table: str, key: bytes, data: Any) -> bytes:
        if len(data) < self.overhead:
            raise Damaged("it is cut short")
        head = bytes(data[: HEADER.size])
        key_id, session, _ = HEADER.unpack(head)
        try:
            cipher = self._cipher(key_id, session)
            return cipher.decrypt(head[NONCE], data[HEADER.size :], _associated_data(table, key))
        except InvalidTag:
            raise Damaged("it is not what was sealed there") from None

    def encrypt_name(self, name: bytes) -> bytes:
        """Encrypt a hash of 16 bytes, always the same way under one data key."""
        return self.names.encryptor().update(name)

    def decrypt_name(self, hidden: bytes) -> bytes:
        return self.names.decryptor().update(hidden)


def _associated_data(table: str, key: bytes) -> bytes:
    return table.encode() + b"\0" + key


def inherited_codec(fd: int) -> AeadCodec:
    """Make a codec with the keys that init left in `fd`, and close that."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)
    return AeadCodec(msgspec.msgpack.decode(data, type=KeyRing))
