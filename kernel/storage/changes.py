"""Changes of objects, as steps that run over the catalogue in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from aios.syscalls import sto
from aios.syscalls.errors import NotFound, UploadGone

from .catalog import Catalog, VersionRow
from .uploads import Upload

Step = Callable[[Catalog], sto.Version]


def changed(owner: str, change: sto.Change, row: VersionRow, upload: Upload | None) -> Step:
    """Return the step that puts or deletes an object; `row` has the part of its content that is not
    in the upload."""
    chunks = 0 if upload is None else upload.chunks

    def step(cat: Catalog) -> sto.Version:
        if change.upload is not None and upload is None:
            raise UploadGone(f"no upload {change.upload}")
        cat.check_version(owner, change.path, change.if_version)
        if change.delete:
            cat.find(owner, change.path)
        if upload is None:
            return cat.add(owner, change.path, row)
        whole = msgspec.structs.replace(row, chunks=upload.held(cat, chunks) + row.chunks)
        return cat.add(owner, change.path, whole, upload=upload.id)

    return step


def purged(owner: str, args: sto.Purge, by: str) -> Step:
    """Return the step that removes an object and all its versions."""

    def step(cat: Catalog) -> sto.Version:
        return cat.purge(owner, args.path, by, time.time())

    return step


def rolled_back(owner: str, args: sto.Restore, by: str) -> Step:
    """Return the step that makes an old version of an object the newest."""

    def step(cat: Catalog) -> sto.Version:
        cat.check_version(owner, args.path, args.if_version)
        old = cat.find(owner, args.path, args.version)
        if old.what == "delete":
            raise NotFound(f"version {old.version} of {args.path!r} is a deletion")
        row = msgspec.structs.replace(old, what="rollback", by=by, time=time.time())
        return cat.add(owner, args.path, row)

    return step
