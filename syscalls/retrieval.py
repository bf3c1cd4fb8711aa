"""The messages of retrieval: what a search takes, and what it finds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from .messages import Message, Reply

Mode = Literal["words", "meaning", "fused"]
IndexState = Literal["asleep", "starting", "ready", "failed"]
Tags = Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=32)]


class Search(Message):
    """Over the newest versions of all texts that the caller may read."""

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
    """What one ranking says of a passage."""

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
