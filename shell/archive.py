"""Objects of storage in a tar file: contents, and in its headers what else is known of them."""

from __future__ import annotations

import contextlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

import msgspec

from aios.agents import Aios
from aios.syscalls import sto as s
from aios.syscalls.errors import BadInput

SCHEMA = "AIOS."  # of the headers
MADE = "`aios sto export` makes what can be imported"


def header(info: s.Version) -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"{info.owner.strip('/') or 'person'}/{info.path}")
    member.size, member.mtime, member.mode = info.size, int(info.time), 0o600
    known = {"owner": info.owner, "path": info.path, "media": info.media,
             "tags": msgspec.json.encode(info.tags).decode()}  # fmt: skip
    member.pax_headers = {SCHEMA + name: value for name, value in known.items()}
    return member


def fields(member: tarfile.TarInfo) -> dict[str, Any]:
    """Return what `header` says of an object, as sto_put takes it. Raises ValueError."""
    known = {name: member.pax_headers.get(SCHEMA + name, "") for name in ("path", "owner", "media")}
    tags = member.pax_headers.get(SCHEMA + "tags", "[]")
    return {**known, "tags": msgspec.json.decode(tags, type=list[str])}


class ObjectReader:
    """An object's content as a file that tarfile reads."""

    def __init__(self, aios: Aios, info: s.Version) -> None:
        self.pieces = aios.sto_stream(info.path, info.version, owner=info.owner)
        self.rest = b""

    def read(self, size: int = s.CHUNK_BYTES, /) -> bytes:
        while len(self.rest) < size and (piece := next(self.pieces, None)) is not None:
            self.rest += piece
        data, self.rest = self.rest[:size], self.rest[size:]
        return data


class Piped(io.RawIOBase):
    """A content out of a pipe, which cannot be read twice; tarfile's own does not say so."""

    def __init__(self, content: IO[bytes]) -> None:
        super().__init__()
        self.content = content

    def read(self, size: int = -1, /) -> bytes:
        return self.content.read(size)


@contextlib.contextmanager
def reading(file: IO[bytes]) -> Iterator[Iterator[tuple[dict[str, Any], IO[bytes]]]]:
    """Yield the objects in a file, with their `fields` and contents. Raises BadInput, also while
    contents are read, if `export` did not write the file, or not all of it is there."""
    try:
        with tarfile.open(fileobj=file, mode="r:*" if file.seekable() else "r|*") as tar:
            yield members(tar, file)
    except (tarfile.TarError, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        first = str(error).partition("\n")[0].rstrip(":")
        raise BadInput(f"cannot read {file.name}: {first}", MADE) from error


def members(tar: tarfile.TarFile, file: IO[bytes]) -> Iterator[tuple[dict[str, Any], IO[bytes]]]:
    for member in tar:
        content = tar.extractfile(member)
        if content is not None:
            if SCHEMA + "path" not in member.pax_headers:
                raise BadInput(f"{file.name} was not written by `aios sto export`")
            given = content if file.seekable() else cast(IO[bytes], Piped(content))
            yield fields(member), given
    assert tar.fileobj is not None
    while tar.fileobj.read(s.CHUNK_BYTES):  # up to the checksum, which gzip has at its end
        pass
