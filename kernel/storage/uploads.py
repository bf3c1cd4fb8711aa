"""Uploads: large contents sent in pieces, whose whole chunks the catalogue holds until they are
put."""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aios.syscalls import sto
from aios.syscalls.errors import (
    AiosError,
    BadInput,
    LimitReached,
    OutOfOrder,
    UploadGone,
)

from ..entry.call import Call
from ..lib.coroutine import background
from ..lib.trees import check_tree, in_tree
from ..process import Process
from .catalog import ENTRY_BYTES, KEY_BYTES, Catalog, UploadChunk

if TYPE_CHECKING:
    from .manager import Storage

MAX_OF_PROCESS, MAX_OF_TREE = 16, 256  # uploads, each of which may hold 256 KiB here


@dataclass
class Upload:
    """A content that is being sent. Whole chunks are in the catalogue, the rest is here."""

    pid: int
    by: str  # the principal of that process
    owner: str
    id: int
    chunks: int = 0
    size: int = 0
    rest: bytearray = field(default_factory=bytearray)

    def held(self, cat: Catalog, chunks: int) -> bytes:
        """Return the keys of its chunks. Raises OutOfOrder unless there are `chunks` of them."""
        held = b"".join(each.chunk for _, each in cat.held(self.id))
        if len(held) != chunks * KEY_BYTES:
            raise OutOfOrder("pieces of the upload are on their way", "wait for their replies")
        return held


class Uploads:
    """The uploads of all processes. An upload ends with its process, and with the kernel."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.rows: dict[int, Upload] = {}

    def find(self, process: Process, owner: str, upload: int | None) -> Upload | None:
        """Return the upload of a number, if it is the process's own and for that owner."""
        found = self.rows.get(upload or 0)
        mine = found is not None and (found.pid, found.owner) == (process.pid, owner)
        return found if mine else None

    async def append(self, call: Call, args: sto.Upload) -> sto.Uploaded:
        """Return when all chunks that the piece makes whole are durable."""
        owner, _ = self.storage.reachable(call, args.owner, "write")
        upload = self.find(call.process, owner, args.upload)
        if upload is None:
            upload = self._begin(call.process, owner, args)
        if args.offset != upload.size:
            raise BadInput(f"a piece at {args.offset} of an upload that has {upload.size} bytes")
        upload.size += len(args.data)
        upload.rest += args.data
        reply = sto.Uploaded(upload=upload.id, size=upload.size)
        if len(upload.rest) >= sto.CHUNK_BYTES:
            await self._hold(call, upload)
        return reply

    async def _hold(self, call: Call, upload: Upload) -> None:
        data = bytes(upload.rest[: sto.CHUNK_BYTES])
        del upload.rest[: sto.CHUNK_BYTES]
        held = UploadChunk(upload.owner, self.storage.key(upload.owner, data), len(data))
        index, upload.chunks = upload.chunks, upload.chunks + 1

        def hold(cat: Catalog) -> None:
            cat.hold(upload.id, index, held)

        try:
            await self.storage.write({held.chunk: data}, hold, call, ENTRY_BYTES)
        except AiosError:
            self.release(upload)
            raise
        if upload.id not in self.rows:  # it has ended meanwhile
            self.release(upload)

    def _begin(self, process: Process, owner: str, args: sto.Upload) -> Upload:
        if args.upload is not None:
            raise UploadGone(f"no upload {args.upload}")
        if args.offset:
            raise BadInput(f"the first piece of an upload is at 0, not {args.offset}")
        if sum(each.pid == process.pid for each in self.rows.values()) >= MAX_OF_PROCESS:
            raise LimitReached(f"{MAX_OF_PROCESS} uploads are open", "put them, or end")
        if process.kind != "client":
            begun = in_tree(process.principal, (each.by for each in self.rows.values()))
            check_tree(process.principal, begun, MAX_OF_TREE, "uploads open", "put some of them")
        upload = Upload(process.pid, process.principal, owner, secrets.randbelow(2**53 - 1) + 1)
        self.rows[upload.id] = upload
        return upload

    def release(self, upload: Upload) -> None:
        self.rows.pop(upload.id, None)
        background(self.storage.write({}, lambda cat: cat.release(upload.id)), _left)

    def ended(self, process: Process) -> None:
        """Release the uploads that a process has not put."""
        for upload in [each for each in self.rows.values() if each.pid == process.pid]:
            self.release(upload)


def _left(error: AiosError) -> None:
    print(f"storage: an upload is left until the next start: {error}", file=sys.stderr)
