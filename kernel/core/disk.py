"""The disk tier: one file an extent, in a folder that is of one model, build and format.

A file may be cut short or changed at any byte, by a full disk, a crash or a failing device: its
checksum tells. So nothing is synced: what a power cut takes away is computed again.
"""

from __future__ import annotations

import importlib.util
import shutil
import struct
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from aios.syscalls.errors import BadInput

from ..lib.encryption import Damaged, Seal
from .state import Bytes

HEADER = struct.Struct("<16s16sIIQI")  # fingerprint, Name, bytes, checksum
PART = ".part"  # ends the name of a file that is being written

Codec = Literal["plain", "zstd"]


class BadExtent(Exception):
    """A file is not what was written under its name."""


class Name(NamedTuple):
    """What a file holds: `tokens` from position `first` on, of the history with this key."""

    key: bytes
    first: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.key.hex()}-{self.first}-{self.tokens}"


def _named(text: str) -> Name | None:
    try:
        key, first, tokens = text.split("-")
        name = Name(bytes.fromhex(key), int(first), int(tokens))
    except ValueError:
        return None
    return name if str(name) == text else None


class Plain:
    def pack(self, rows: Bytes) -> Any:
        return rows

    def unpack(self, data: Bytes, size: int) -> Bytes:
        return data


class Zstd:
    """The low bytes of all values, then the high ones, which hold the exponents and compress."""

    def __init__(self) -> None:
        if importlib.util.find_spec("zstandard") is None:
            raise BadInput(
                "disk_codec zstd needs the package zstandard",
                "pip install 'aios-system[compact]', or set disk_codec to plain",
            )
        self.library = importlib.import_module("zstandard")

    def pack(self, rows: Bytes) -> Any:
        return self.library.ZstdCompressor(level=1).compress(
            np.concatenate([rows[::2], rows[1::2]])
        )

    def unpack(self, data: Bytes, size: int) -> Bytes:
        split = self.library.ZstdDecompressor().decompress(data, max_output_size=size)
        rows = np.empty(len(split), np.uint8)
        low = (len(split) + 1) // 2
        rows[::2], rows[1::2] = (
            np.frombuffer(split[:low], np.uint8),
            np.frombuffer(split[low:], np.uint8),
        )
        return rows


CODECS: dict[Codec, type[Plain | Zstd]] = {"plain": Plain, "zstd": Zstd}


class Disk:
    """Files below `root`, at most `budget` bytes of them. Folders of other fingerprints, codecs or
    data keys, which nobody would read any more, are removed unread.

    `write`, `read` and `remove` may run in any thread.

    Raises:
        BadInput: the folder cannot be used, or the codec is not installed.
    """

    def __init__(
        self, root: Path, fingerprint: bytes, budget: int, codec: Codec = "plain",
        seal: Seal | None = None,
    ) -> None:  # fmt: skip
        self.codec, self.budget, self.seal = CODECS[codec](), budget, seal
        made_by = fingerprint + codec.encode() + (seal.id if seal else b"")
        self.fingerprint = blake2b(made_by, digest_size=16).digest()
        self.folder = root / self.fingerprint.hex()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for other in root.iterdir():
                if other != self.folder and other.is_dir():
                    shutil.rmtree(other)
            self.found = list(self._scan())
        except OSError as error:
            raise BadInput(
                f"cannot keep snapshots in {root}: {error.strerror}",
                "make room or give rights there, or set disk_bytes to 0",
            ) from error

    def _scan(self) -> Iterator[tuple[Name, int]]:
        """What is there, with the bytes of each file. What was left half written is removed."""
        for path in self.folder.iterdir():
            name = _named(path.name)
            if name is None:
                path.unlink()
            else:
                key = self.seal.show(name.key) if self.seal else name.key
                yield name._replace(key=key), path.stat().st_size

    def write(self, name: Name, rows: Bytes) -> int:
        """Bytes that were written. Raises OSError, and nothing is left of the file then."""
        data, name = self.codec.pack(rows), self._in_clear(name)
        if self.seal is not None:
            data = self.seal.close("extent", str(name).encode(), data)
        path = self.folder / str(name)
        part = path.with_name(path.name + PART)
        try:
            with part.open("wb") as file:
                file.write(self._header(name, data))
                file.write(data)
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return HEADER.size + len(data)

    def read(self, name: Name, size: int) -> Bytes:
        """The rows, `size` bytes.

        Raises:
            OSError: it cannot be read.
            BadExtent: it is not what was written under this name.
        """
        name = self._in_clear(name)
        content = np.fromfile(self.folder / str(name), np.uint8)
        header, data = content[: HEADER.size].tobytes(), content[HEADER.size :]
        if header != self._header(name, data):
            raise BadExtent(f"{name} is damaged")
        if self.seal is not None:
            try:
                opened = self.seal.open("extent", str(name).encode(), data)
            except Damaged as error:
                raise BadExtent(f"{name}: {error}") from None
            data = np.frombuffer(opened, np.uint8)
        return self.codec.unpack(data, size)

    def remove(self, name: Name) -> None:
        (self.folder / str(self._in_clear(name))).unlink(missing_ok=True)

    def _in_clear(self, name: Name) -> Name:
        """As it stands in the folder: a key tells whether a guess at a prompt is right."""
        return name if self.seal is None else name._replace(key=self.seal.hide(name.key))

    def _header(self, name: Name, data: Any) -> bytes:
        """Ends in a CRC-32 of the data: it finds every change within 32 neighbouring bits, and
        misses one of four billion others."""
        return HEADER.pack(self.fingerprint, *name, len(data), zlib.crc32(data))
