"""Storage in the SDK: the `sto.` calls as methods, contents of any size as bytes or files."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Sequence
from typing import IO, Any

from aios.syscalls import sto as s
from aios.syscalls.base import Done
from aios.syscalls.errors import BadInput, UploadGone
from aios.syscalls.sto import Hits, IndexReport, Mode

from .calls import Calls, several
from .connection import Pending

PIECE_BYTES = 56 * 1024  # of content in one call
MAX_PIECES_IN_FLIGHT = 8


class StorageCalls(Calls):
    """The calls about storage. Paths are those of the caller's own objects, unless `owner` names
    another agent: "/writer", or "/writer/helper" for one that a writer started.

    All calls may raise Denied, NotFound, StoreDamaged, BackendDown; those that write also Conflict,
    LimitReached, StoreFull, DiskFull.
    """

    # --- writing ----------------------------------------------------------------------------------

    def sto_put(
        self, path: str, data: bytes | str | IO[bytes], *, tags: Sequence[str] = (),
        media: str = "", if_version: int | None = None, owner: str | None = None,
    ) -> s.Version:  # fmt: skip
        """Write a new version of an object, which is on disk on return. With `if_version`, raise
        Conflict unless that is the newest version (0: unless there is no such object)."""
        if not (isinstance(data, bytes | str) or hasattr(data, "read")):
            raise TypeError(f"a content is bytes, text or a file, not {type(data).__name__}")
        content = data.encode() if isinstance(data, str) else data
        fields: dict[str, Any] = {
            "path": path, "tags": several(tags), "media": media, "if_version": if_version,
            "owner": owner,
        }  # fmt: skip
        if isinstance(content, bytes) and len(content) <= PIECE_BYTES:
            return self._call(s.Version, "sto.put", data=content, **fields)
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        start = file.tell() if file.seekable() else None
        while True:
            try:
                return self._call(
                    s.Version, "sto.put", upload=self.sto_upload(file, owner), **fields
                )
            except UploadGone:  # with a kernel that died
                if start is None:
                    raise
                file.seek(start)

    def sto_upload(self, file: IO[bytes], owner: str | None = None) -> int:
        """Send content for a put or a batch, and return the number of the upload.

        Raises:
            UploadGone: the kernel died meanwhile; send it again.
        """
        first = self._call(
            s.Uploaded, "sto.upload", data=file.read(PIECE_BYTES), offset=0, owner=owner
        )
        offset, calls = first.size, []
        while data := file.read(PIECE_BYTES):
            calls.append(
                self.start("sto.upload", data=data, offset=offset, upload=first.upload, owner=owner)
            )
            offset += len(data)
            if len(calls) == MAX_PIECES_IN_FLIGHT:
                calls.pop(0).wait()
        for call in calls:
            call.wait()
        return first.upload

    def sto_batch(
        self, changes: Sequence[dict[str, Any]], owner: str | None = None
    ) -> list[s.Version]:
        """Make several changes, all or none: maps with the fields of sto.batch's changes."""
        return self._call(list[s.Version], "sto.batch", changes=list(changes), owner=owner)

    def sto_delete(
        self, path: str, *, if_version: int | None = None, owner: str | None = None
    ) -> s.Version:
        """Delete an object; its history stays."""
        return self._call(s.Version, "sto.delete", path=path, if_version=if_version, owner=owner)

    def sto_rollback(
        self, path: str, version: int, *, if_version: int | None = None, owner: str | None = None
    ) -> s.Version:
        """Write a new version with the content of an earlier one."""
        return self._call(
            s.Version, "sto.rollback", path=path, version=version, if_version=if_version,
            owner=owner,
        )  # fmt: skip

    def sto_purge(self, path: str, owner: str | None = None) -> s.Version:
        """Drop an object with all its versions."""
        return self._call(s.Version, "sto.purge", path=path, owner=owner)

    # --- reading ----------------------------------------------------------------------------------

    def sto_get(self, path: str, version: int | None = None, *, owner: str | None = None) -> bytes:
        """Read the content of an object."""
        return b"".join(self.sto_stream(path, version, owner=owner))

    def sto_stream(
        self, path: str, version: int | None = None, *, owner: str | None = None
    ) -> Iterator[bytes]:
        """Yield the content of an object piece by piece, all of one version."""
        offset = 0
        while True:
            part = self.sto_read(path, version, offset=offset, owner=owner)
            yield part.data
            version, offset = part.info.version, offset + len(part.data)
            if offset >= part.info.size:
                return

    def sto_read(
        self, path: str, version: int | None = None, *, offset: int = 0, count: int = s.CHUNK_BYTES,
        owner: str | None = None,
    ) -> s.Content:  # fmt: skip
        """Read a part of the content, with the version's metadata."""
        return self._call(
            s.Content, "sto.get", path=path, version=version, offset=offset, count=count,
            owner=owner,
        )  # fmt: skip

    def sto_list(
        self, prefix: str = "", *, deleted: bool = False, owner: str | None = None
    ) -> Iterator[s.Version]:
        """Iterate over the newest versions of objects, in the order of their paths."""
        after: str | None = ""
        while after is not None:
            page = self._call(
                s.Listed, "sto.list", prefix=prefix, after=after, deleted=deleted, owner=owner
            )
            yield from page.objects
            after = page.after

    def sto_history(self, path: str, *, owner: str | None = None) -> Iterator[s.Version]:
        """Iterate over all versions of an object, the newest first."""
        before: int | None = None
        while page := self._call(
            list[s.Version], "sto.history", path=path, before=before, owner=owner
        ):
            yield from page
            before = page[-1].version

    def sto_diff(
        self, path: str, old: int, new: int | None = None, *, owner: str | None = None
    ) -> str:
        """Compare two versions of a text, or one with the newest, as a unified diff.

        Raises:
            BadInput: one of them is not text in UTF-8.
        """
        new = new or self.sto_read(path, count=0, owner=owner).info.version
        try:
            before, after = (
                self.sto_get(path, version, owner=owner).decode().splitlines(keepends=True)
                for version in (old, new)
            )
        except UnicodeDecodeError as error:
            raise BadInput(f"{path!r} is not text: there is no diff of it") from error
        lines = difflib.unified_diff(before, after, f"{path} {old}", f"{path} {new}")
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)

    def sto_watch(self, prefix: str = "", *, owner: str | None = None) -> Iterator[s.Version]:
        """Follow changes to the objects below a prefix. Changes while a killed kernel is replaced
        are missed: compare versions if that matters."""
        return self._follow(s.Version, "sto.watch", prefix=prefix, owner=owner)

    # --- finding ----------------------------------------------------------------------------------

    def sto_search(
        self, query: str, *, count: int = 5, mode: Mode = "fused", owner: str | None = None,
        path: str = "", since: float | None = None, until: float | None = None,
        tags: Sequence[str] = (), fresh: bool = False,
    ) -> Hits:  # fmt: skip
        """Find the passages that fit best, in the newest versions of all objects that may be read,
        of one owner, or below a path. A new version is found a moment later; with `fresh` the
        search waits until all are indexed.

        Raises:
            Denied: nothing of that owner may be read.
            IndexFailed: the index does not run.
        """
        return self._call(
            Hits, "sto.search", query=query, count=count, mode=mode, owner=owner, path=path,
            since=since, until=until, tags=several(tags), fresh=fresh,
        )  # fmt: skip

    def sto_index(self) -> IndexReport:
        """Return the state of the index."""
        return self._call(IndexReport, "sto.index")

    def sto_reindex(self) -> None:
        """Rebuild the index."""
        self._call(Done, "sto.reindex")

    # --- owners -----------------------------------------------------------------------------------

    def sto_share(
        self, prefix: str, to: str, mode: str = "read", *, owner: str | None = None
    ) -> None:
        """Let others read or write a path and all below it; mode "none" takes that back. `to` is an
        agent ("/reader"), all below one ("/team/*"), or a group (`aios group set`)."""
        self._call(Done, "sto.share", prefix=prefix, to=to, mode=mode, owner=owner)

    def sto_shares(self, owner: str | None = None) -> list[s.SharedPrefix]:
        """List the prefixes that an owner has shared, and those that others have shared with it."""
        return self._call(list[s.SharedPrefix], "sto.shares", owner=owner)

    def sto_owners(self) -> Iterator[s.Holding]:
        """Iterate over owners and their use of the quota: an agent sees itself, a person all."""
        after: str | None = None
        while True:
            page = self._call(s.Holdings, "sto.owners", after=after)
            yield from page.owners
            if (after := page.after) is None:
                return

    # --- a person's -------------------------------------------------------------------------------

    def sto_verify(self) -> Pending:
        """Check all of storage. Iterate for progress; `wait` for sto.Verified as a map."""
        return self.start("sto.verify")

    def sto_compact(self, keep: int | None = None) -> Pending:
        """Drop content that nothing refers to and, with `keep`, all but the newest versions."""
        return self.start("sto.compact", keep=keep)

    def sto_backup(self, target: str) -> Pending:
        """Copy all of it into a folder that does not exist yet. Iterate for progress; `wait` for
        sto.BackedUp as a map."""
        return self.start("sto.backup", target=target)
