"""The protocol between the kernel and the index: msgpack, one tagged struct per message.

The kernel numbers the changes of its store with a rising `seq` and sends them in that order, when
they are durable there. The index reports up to which `seq` it has them durably itself; when either
side starts again, the changes behind that follow.

An `epoch` is the time between two Resets, of whichever kernel. Messages that were under way when a
Reset was sent carry the epoch before, and both sides ignore them: so no change is ever left out.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from aios.syscalls.sto import Hit, Mode


class IndexFrame(Struct, tag_field="t"):
    """Base of all messages between kernel and index. Tags are the names that classes had first."""


class ResetIndex(IndexFrame, tag="Reset"):
    """A kernel's first message, answered by Position; no change may be sent before that has come.

    Puts and Removes not yet indexed are dropped; with `drop`, or if the index is about another
    `store`, all documents are.
    """

    epoch: int
    store: str  # the identity of the store
    drop: bool = False


class PutDocument(IndexFrame, tag="Put"):
    """The newest version of a document; its text replaces the one indexed for (owner, path)."""

    epoch: int
    seq: int
    owner: str
    path: str
    version: int
    time: float  # seconds since 1970
    tags: list[str]
    text: str


class RemoveDocument(IndexFrame, tag="Remove"):
    """A document that is gone, or has no text any more."""

    epoch: int
    seq: int
    owner: str
    path: str


class Search(IndexFrame):
    """A query, answered by SearchResults as of now; these may overtake Positions.

    Only documents that `scopes` cover are ever looked at: a scope (owner, path) covers that path
    and all below it ("path/..."), and with an empty path all of the owner's. Hits, scores and ranks
    depend on nothing else. A document must have `since` <= time < `until`, and all of the `tags`.
    """

    req: int
    query: str
    mode: Mode
    count: int  # hits at most
    scopes: list[tuple[str, str]]
    since: float | None = None
    until: float | None = None
    tags: list[str] = []


Change = PutDocument | RemoveDocument
Command = ResetIndex | PutDocument | RemoveDocument | Search


class Position(IndexFrame):
    """The state of the index: changes up to `seq` are indexed and durable; 0: none are.

    Sent after a Reset and after each batch of changes, and when `trouble` comes or goes.
    """

    epoch: int
    seq: int
    documents: int
    passages: int
    began_again: str = ""  # why the file that this process found could not be used
    trouble: str = ""  # why changes cannot be written now; it is tried again


class SearchResults(IndexFrame, tag="Found"):
    """The answer to a Search."""

    req: int
    hits: list[Hit]
    error: dict[str, str] | None = None  # an AiosError on the wire


class IndexUnusable(IndexFrame, tag="Failed"):
    """The index cannot start; `error` is an AiosError on the wire."""

    error: dict[str, str]


Report = Position | SearchResults | IndexUnusable

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
