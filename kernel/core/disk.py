"""The disk tier: one file per KV block, in a folder for one model, build and format.

A full disk, a crash or a failing device may cut a file short or change any byte of it; its checksum
shows that. So nothing is synced: a block lost in a power cut is computed again.
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

from ..lib.encryption import AeadCodec, Damaged
from .state_layout import Bytes

HEADER = struct.Struct("<16s16sIIQI")  # fingerprint, BlockName, bytes, checksum
PART_SUFFIX = ".part"  # of a file that is being written

CodecName = Literal["plain", "zstd"]


class BadBlock(Exception):
    """A file does not have the content that was written under its name."""


class BlockName(NamedTuple):
    """The content of a file: `tokens` from position `first` on, of the history with this key."""

    key: bytes
    first: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.key.hex()}-{self.first}-{self.tokens}"


def _parse_name(text: str) -> BlockName | None:
    try:
        key, first, tokens = text.split("-")
        name = BlockName(bytes.fromhex(key), int(first), int(tokens))
    except ValueError:
        return None
    return name if str(name) == text else None


class PlainCodec:
    """Stores rows as they are."""

    def most(self, size: int) -> int:
        return size

    def pack(self, rows: Bytes) -> Any:
        return rows

    def unpack(self, data: Bytes, size: int) -> Bytes:
        return data


class ZstdCodec:
    """Compresses rows: all values' low bytes, then the high ones, which hold the exponents."""

    def __init__(self) -> None:
        if importlib.util.find_spec("zstandard") is None:
            raise BadInput(
                "disk_codec zstd needs the package zstandard",
                "pip install 'aios-system[compact]', or set disk_codec to plain",
            )
        self.library = importlib.import_module("zstandard")

    def most(self, size: int) -> int:
        """Return the most bytes that rows of `size` bytes may take: ZSTD_COMPRESSBOUND."""
        return size + size // 256 + 64

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


CODECS: dict[CodecName, type[PlainCodec | ZstdCodec]] = {"plain": PlainCodec, "zstd": ZstdCodec}


class Disk:
    """Stores KV blocks below `root`, at most `budget` bytes of them. Folders of other fingerprints,
    codecs or data keys are removed unread, since nobody can use them any more.

    `write`, `read` and `remove` may run in any thread.

    Raises:
        BadInput: the folder cannot be used, or the codec is not installed.
    """

    def __init__(
        self, root: Path, fingerprint: bytes, budget: int, codec: CodecName = "plain",
        seal: AeadCodec | None = None,
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

    def _scan(self) -> Iterator[tuple[BlockName, int]]:
        """Yield the blocks in the folder with their files' sizes; remove half-written files."""
        for path in self.folder.iterdir():
            name = _parse_name(path.name)
            if name is None:
                path.unlink()
            else:
                key = self.seal.decrypt_name(name.key) if self.seal else name.key
                yield name._replace(key=key), path.stat().st_size

    def most(self, size: int) -> int:
        """Return the most bytes that the file of a block with `size` bytes of rows may take."""
        return HEADER.size + self.codec.most(size) + (self.seal.overhead if self.seal else 0)

    def write(self, name: BlockName, rows: Bytes) -> int:
        """Write a block's rows, and return the size of the file. Raises OSError, and leaves no file
        then."""
        data, name = self.codec.pack(rows), self._name_on_disk(name)
        if self.seal is not None:
            data = self.seal.encode("extent", str(name).encode(), data)
        path = self.folder / str(name)
        part = path.with_name(path.name + PART_SUFFIX)
        try:
            with part.open("wb") as file:
                file.write(self._header(name, data))
                file.write(data)
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return HEADER.size + len(data)

    def read(self, name: BlockName, size: int) -> Bytes:
        """Read a block's rows, `size` bytes.

        Raises:
            OSError: the file cannot be read.
            BadBlock: the file is damaged, or is another block's.
        """
        name = self._name_on_disk(name)
        content = np.fromfile(self.folder / str(name), np.uint8)
        header, data = content[: HEADER.size].tobytes(), content[HEADER.size :]
        if header != self._header(name, data):
            raise BadBlock(f"{name} is damaged")
        if self.seal is not None:
            try:
                opened = self.seal.decode("extent", str(name).encode(), data)
            except Damaged as error:
                raise BadBlock(f"{name}: {error}") from None
            data = np.frombuffer(opened, np.uint8)
        return self.codec.unpack(data, size)

    def remove(self, name: BlockName) -> None:
        (self.folder / str(self._name_on_disk(name))).unlink(missing_ok=True)

    def _name_on_disk(self, name: BlockName) -> BlockName:
        """Return the name to use in the folder. With encryption it hides the key, which would tell
        whether a guess at the prompt is right."""
        return name if self.seal is None else name._replace(key=self.seal.encrypt_name(name.key))

    def _header(self, name: BlockName, data: Any) -> bytes:
        """Return the header, which ends in a CRC-32 of the data. That finds every change within 32
        neighbouring bits, and misses one in four billion others."""
        return HEADER.pack(self.fingerprint, *name, len(data), zlib.crc32(data))
