"""What the kernel and the index say to each other: msgpack, one tagged struct a message.

The kernel numbers the changes of its store with a rising `seq` and sends them in that order, when
they are durable there. The index tells up to which it has them durably itself; when it starts, or
when the kernel does, it goes on behind that.

An `epoch` is what lies between two Resets, of whichever kernel. What was under way when a Reset was
sent carries the epoch before, and is ignored by both sides: so nothing is ever left out in between.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from aios.syscalls.sto import Hit, Mode


class Frame(Struct, tag_field="t"):
    """Base of all that travels between kernel and index."""


class Reset(Frame):
    """A kernel's first word, answered by Position; no change may be sent before that has come.

    Puts and Removes not yet indexed are dropped. All that is indexed is dropped too if `drop`, or
    if it is another `store` that it came from.
    """

    epoch: int
    store: str  # the identity of the store
    drop: bool = False


class Put(Frame):
    """The newest version of a document; its text replaces what was indexed of (owner, path)."""

    epoch: int
    seq: int
    owner: str
    path: str
    version: int
    time: float  # seconds since 1970
    tags: list[str]
    text: str


class Remove(Frame):
    epoch: int
    seq: int
    owner: str
    path: str


class Search(Frame):
    """Answered by Found, from what is indexed at that moment; the answer may overtake Positions.

    Only what `scopes` cover is ever looked at: a scope (owner, path) is that path and all below it
    ("path/..."), and with an empty path all of the owner's. Hits, scores and ranks depend on
    nothing else. Of what they cover `since` <= time < `until` is taken, with all of the `tags`.
    """

    req: int
    query: str
    mode: Mode
    count: int  # hits at most
    scopes: list[tuple[str, str]]
    since: float | None = None
    until: float | None = None
    tags: list[str] = []


Change = Put | Remove
Command = Reset | Put | Remove | Search


class Position(Frame):
    """All changes up to `seq` are indexed and durable; 0: nothing is.

    Sent after a Reset and after each batch of changes, and when `trouble` comes or goes.
    """

    epoch: int
    seq: int
    documents: int
    passages: int
    began_again: str = ""  # why the index that was there before this process could not be used
    trouble: str = ""  # why changes cannot be written now; it is tried again


class Found(Frame):
    req: int
    hits: list[Hit]
    error: dict[str, str] | None = None  # an AiosError on the wire


class Failed(Frame):
    """The index cannot start; `error` is an AiosError on the wire."""

    error: dict[str, str]


Report = Position | Found | Failed

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
