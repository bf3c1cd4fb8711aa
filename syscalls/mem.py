"""The messages of memory: what each `mem.` call takes, and what it answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from .base import Message, Name, Number, Pid, Principal, Reply
from .llm import PastMessage, Usage

MAX_KEY_BYTES = 400  # in UTF-8
MAX_SPACES = 64  # of one agent

Key = Annotated[str, Meta(min_length=1, max_length=MAX_KEY_BYTES)]
Place = tuple[Number, Number]  # of an entry in a log


class Whose(Message):
    """Base of the calls about memory. An agent leaves both out: it reaches its own memory only."""

    pid: Pid | None = None  # of a live agent
    principal: Principal | None = None  # names of an agent and those above it: "/writer/helper"


class PutItems(Whose, kw_only=True):
    """Set items, all or none."""

    items: Annotated[dict[Key, Any], Meta(min_length=1, max_length=1024)]
    space: Name = "main"
    ack: Literal["durable", "accepted"] = "durable"  # accepted: before it is on disk


class GetItems(Whose, kw_only=True):
    keys: Annotated[list[Key], Meta(min_length=1, max_length=1024)]
    space: Name = "main"


class Items(Reply):
    items: dict[str, Any]  # of the keys asked for, those that are there
    rest: list[str]  # keys that the reply has no room for: ask again


class DeleteItems(Whose, kw_only=True):
    """Remove keys; it is no error if some are not there."""

    keys: Annotated[list[Key], Meta(min_length=1, max_length=1024)]
    space: Name = "main"


class Deleted(Reply):
    count: int  # keys that were there


class Scan(Whose, kw_only=True):
    """Read items in the order of their keys' bytes, a page at a time."""

    space: Name = "main"
    prefix: Annotated[str, Meta(max_length=MAX_KEY_BYTES)] = ""
    after: Key | None = None  # go on behind this key
    back: bool = False  # from the last key down
    limit: Annotated[int, Meta(ge=1, le=1024)] = 256


class Scanned(Reply):
    items: list[tuple[str, Any]]
    damaged: list[str]  # keys whose values the disk has not kept: overwrite or delete them
    after: str | None  # where the next page begins; nil: this was the last


class Clear(Whose, kw_only=True):
    space: Name | None = None  # nil: all


class Spaces(Whose, kw_only=True):
    """List the spaces of an agent's memory; a person who names none lists those of all agents."""


class Space(Reply):
    name: str
    count: int
    bytes: int  # of keys and values


class Memory(Reply):
    """The memory of one agent."""

    pid: Pid  # 0: it has ended, and the memory is kept
    principal: str
    keep: bool
    held_by: Pid | None  # who alive, of the same principal, has what was kept under that name
    spaces: list[Space]
    bytes: int
    limit: int | None  # mem_bytes
    resident: int  # items that are in the kernel's RAM as well
    resident_bytes: int
    evicted: int  # times that one moved out of RAM
    fetched: int  # times that one came back
    failed: int  # puts that were accepted, and could not be written


class Keep(Whose, kw_only=True):
    """Keep the memory when its agent ends, for the next agent of its name; or do not keep it."""

    keep: bool = True


class Interactions(Whose, kw_only=True):
    """Read the interaction log, which the kernel itself writes."""

    after: Place | None = None  # go on behind this one
    back: bool = False  # the newest first
    limit: Annotated[int, Meta(ge=1, le=256)] = 64


class Interaction(Reply):
    turn: int  # rising by one
    time: float  # Unix time
    pid: Pid
    kind: Literal["generation", "sent", "received"]
    prompt: list[PastMessage] | UnsetType = UNSET  # that the answer follows; token ids are left out
    answer: str | UnsetType = UNSET
    finish: str | UnsetType = UNSET  # as in a result; or "failed"
    usage: Usage | UnsetType = UNSET
    peer: Pid | UnsetType = UNSET  # of a message
    name: str | UnsetType = UNSET
    body: Any = UNSET
    cut: dict[str, int] | UnsetType = UNSET  # full lengths, in characters, of what was cut


class LogPage(Reply):
    entries: list[Interaction]
    after: Place | None  # where the next page begins; nil: this was the last
