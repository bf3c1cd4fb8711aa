"""The messages of the access manager: groups, grants, and what a person is asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from .base import Id, Message, Name, Pid, Reply
from .rules import Argument, Effect, Group, Member, Pattern, Right


class Groups(Reply):
    groups: dict[str, Group]


class SetGroup(Message):
    """Make a group anew, or without a value remove it."""

    name: Name
    group: Group | None = None


class Grant(Message):
    """Hand on a right: `to` may do on `on` what the caller may, as long as the caller may."""

    to: Member  # a principal, or all below one
    right: Right
    on: Annotated[list[Pattern], Meta(min_length=1, max_length=64)] = field(
        default_factory=lambda: ["**"]
    )
    args: Annotated[dict[str, Argument], Meta(max_length=64)] = field(default_factory=dict)
    seconds: Annotated[float, Meta(gt=0, le=1e9)] | None = None  # until it expires


class Granted(Reply):
    id: int


class Revoke(Message):
    """Take back a grant of one's own, or one that was made by right of it."""

    id: Id


class GrantRow(Reply):
    id: int
    giver: str  # a principal; "": a person
    pid: Pid  # of the giver; 0: a person, whose grants outlive the system
    to: str
    right: str
    on: list[str]
    args: dict[str, Argument]
    expires: float | None  # Unix time


class Check(Message):
    """Ask if a process may do something, and by which rule. An agent asks about itself only."""

    right: Right
    object: Annotated[str, Meta(max_length=8192)] = ""
    args: dict[str, Any] = field(default_factory=dict)
    pid: Pid | None = None
    principal: Member | None = None  # one that need not be alive: by its groups alone


class Verdict(Reply):
    effect: Effect
    rule: str  # that decided
    tainted: list[str]
    fits: list[str]  # all rules that fit, for a person to read


class Questions(Message):
    """Follow what a person is asked: one piece for each question, those that wait first."""


class Question(Reply):
    id: int
    pid: Pid
    principal: str
    call: str
    right: str
    objects: list[str]  # all that the call is about
    args: dict[str, Any]  # all that it was given
    rule: str
    tainted: list[str]
    expires: float  # Unix time; then the answer is deny


class Answer(Message):
    """once: this call; agent: this process from now on; always: its principal, in the policy.

    A rule that denies at the time of the answer wins over it.
    """

    id: Id
    answer: Literal["once", "agent", "always", "deny"]


PublicKey = Annotated[str, Meta(min_length=40, max_length=40)]  # of CURVE, in Z85


class KeyAllow(Message):
    """Let whoever has this key connect: as the agent "/NAME", or as a person, who may do all."""

    name: Name
    public: PublicKey
    person: bool = False


class KeyRemove(Message):
    """Remove a key, and end the connections that were made with it."""

    name: Name


class Key(Reply):
    name: str
    public: str
    person: bool
    pids: list[Pid]  # of its connections


class Keys(Reply):
    address: str  # where the kernel listens; "": nowhere
    server: str  # the kernel's public key, where it listens
    error: dict[str, str] | None  # why it does not
    keys: list[Key]
