"""The messages of storage: versioned objects under the paths of their owners.

An owner is a principal: the name of an agent below those of who started it ("/writer/helper"), or
"" for a person. Where a call names no owner, it is the caller.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from .base import Message, Number, Principal, Reply, Seconds

MAX_PATH_BYTES = 200  # in UTF-8
CHUNK_BYTES = 256 * 1024  # of content that one sto.get can ask for

Path = Annotated[str, Meta(min_length=1, max_length=MAX_PATH_BYTES)]
Prefix = Annotated[str, Meta(max_length=MAX_PATH_BYTES)]  # a path and all below it; "": all
Tags = Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=32)]
Folder = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
Media = Annotated[str, Meta(max_length=128)]
What = Literal["put", "delete", "rollback", "purge"]


class Change(Message):
    """A new version of one object: exactly one of `data`, `upload`, `delete`."""

    path: Path
    data: bytes | None = None
    upload: Number | None = None  # of sto.upload: what was sent there becomes the content
    delete: bool = False
    tags: Tags = field(default_factory=list)
    media: Media = ""  # a media type
    if_version: Number | None = None  # only if this is the newest; 0: only if there is none


class Put(Message):
    """Write a version; exactly one of `data` and `upload`. The fields are those of a change."""

    path: Path
    data: bytes | None = None
    upload: Number | None = None
    tags: Tags = field(default_factory=list)
    media: Media = ""
    if_version: Number | None = None
    owner: Principal | None = None


class Batch(Message):
    """Make all of the changes, or none."""

    changes: Annotated[list[Change], Meta(min_length=1, max_length=256)]
    owner: Principal | None = None


class Delete(Message):
    """Delete an object by a new version that says so; the earlier versions stay."""

    path: Path
    if_version: Number | None = None
    owner: Principal | None = None


class Restore(Message):
    """Make a new version with the content of an earlier one."""

    path: Path
    version: Annotated[int, Meta(ge=1)]
    if_version: Number | None = None
    owner: Principal | None = None


class Purge(Message):
    """Drop all versions of an object; its version numbers are not given again."""

    path: Path
    owner: Principal | None = None


class Upload(Message):
    """Send a piece of a large content, which a sto.put or sto.batch then names.

    The reply comes when the piece may be followed by others; when a put is sent, all replies must
    be there. An upload ends with its process, and with the kernel: then it is begun again.
    """

    data: bytes
    offset: Number  # bytes sent before
    upload: Number | None = None  # none: a new one
    owner: Principal | None = None


class Uploaded(Reply):
    upload: int
    size: int  # bytes sent so far


class Get(Message):
    path: Path
    version: Annotated[int, Meta(ge=1)] | None = None  # none: the newest
    offset: Number = 0
    count: Annotated[int, Meta(ge=0, le=CHUNK_BYTES)] = CHUNK_BYTES  # at most
    owner: Principal | None = None


class Version(Reply):
    owner: str
    path: str
    version: int
    what: What
    size: int
    time: float  # Unix time
    by: str  # the principal that made it
    tags: list[str]
    media: str
    labels: list[str] = field(default_factory=list)  # of who wrote it: where it may come from


class Content(Reply):
    data: bytes
    info: Version


class List(Message):
    """List objects whose path begins with `prefix` as a string, in the order of their paths."""

    prefix: Prefix = ""
    after: Prefix = ""  # go on behind this path
    limit: Annotated[int, Meta(ge=1, le=500)] = 200
    deleted: bool = False  # those whose newest version is a deletion, as well
    owner: Principal | None = None


class Listed(Reply):
    objects: list[Version]
    after: str | None  # where the next page begins; none: this was the last


class History(Message):
    """List the versions of an object, the newest first."""

    path: Path
    before: Number | None = None  # go on below this version
    limit: Annotated[int, Meta(ge=1, le=500)] = 200
    owner: Principal | None = None


class Share(Message):
    """Let others reach a path and all below it.

    `to` is a principal ("/reader"), all below one ("/team/*"), or a group (`aios group set`).
    """

    prefix: Prefix
    to: Annotated[str, Meta(min_length=1, max_length=256)]
    mode: Literal["read", "write", "none"] = "read"  # write: read as well; none: not any more
    owner: Principal | None = None


class SharedPrefix(Reply):
    owner: str
    prefix: str
    to: str
    mode: Literal["read", "write"]


class Shares(Message):
    """List the prefixes that an owner has shared, and those that others have shared with it."""

    owner: Principal | None = None


class Owners(Message):
    """List owners, in no particular order: one that is new while pages are read may be left out."""

    after: Principal | None = None  # go on behind this owner
    limit: Annotated[int, Meta(ge=1, le=500)] = 200


class Holding(Reply):
    owner: str
    bytes: int  # that count against the quota
    limit: int | None


class Holdings(Reply):
    owners: list[Holding]
    after: str | None  # where the next page begins; none: this was the last


class Watch(Message):
    """Follow changes: one piece for each from now on, until cancelled."""

    prefix: Prefix = ""
    owner: Principal | None = None


class Verify(Message):
    pass


class Compact(Message):
    """Drop content that nothing refers to and, with `keep`, all but the newest versions."""

    keep: Annotated[int, Meta(ge=1)] | None = None  # versions of each object


class Backup(Message):
    """Copy the store into `data.mdb` of a folder and, where contents are in a folder or a bucket,
    those that the copy refers to into its folder `blobs`."""

    target: Folder  # a folder that is to be made


class BackedUp(Reply):
    chunks: int  # in the folder `blobs`; 0 where data.mdb has the contents
    missing: int  # chunks that could not be found; `sto.verify` names them


class Progress(Reply):
    done: int
    what: str


class Verified(Reply):
    objects: int
    versions: int
    chunks: int
    bytes: int  # of distinct content
    problems: list[str]
    seconds: Seconds


class Compacted(Reply):
    versions: int  # dropped
    chunks: int  # dropped


# --- retrieval --------------------------------------------------------------------------------

Mode = Literal["words", "meaning", "fused"]
IndexState = Literal["asleep", "starting", "ready", "failed"]


class Search(Message):
    """Search the newest versions of all texts that the caller may read."""

    query: Annotated[str, Meta(min_length=1, max_length=4096)]
    count: Annotated[int, Meta(ge=1, le=50)] = 5  # hits at most
    mode: Mode = "fused"
    owner: str | None = None  # of these alone; None: of all that may be read
    path: str = ""  # this path and all below it
    since: float | None = None  # seconds since 1970, of the version
    until: float | None = None
    tags: Tags = field(default_factory=list)  # all of them
    fresh: bool = False  # wait until all that is stored now is indexed


class Standing(Reply):
    """The place of a passage in one ranking."""

    score: float  # BM25, or cosine
    rank: int  # from 1, among all that was looked at


class Hit(Reply):
    """A passage: the characters `start` to `end` of that version."""

    owner: str
    path: str
    version: int
    start: int
    end: int
    text: str
    score: float  # of the ranking that was asked for
    words: Standing | None
    meaning: Standing | None


class Hits(Reply):
    hits: list[Hit]
    behind: int  # changes of storage that were not indexed yet


class Index(Message):
    pass


class Reindex(Message):
    pass


class IndexReport(Reply):
    state: IndexState
    position: int  # the newest change of storage that is indexed
    behind: int  # changes that are not
    documents: int
    passages: int
    trouble: str  # why it cannot be written, or why it was begun again
    restarts: int
