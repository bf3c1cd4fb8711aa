"""The base classes of all messages of the ABI, and the types that several groups share.

Units: times in seconds, memory in bytes, everything about the model in tokens.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Pid = Annotated[int, Meta(ge=0, le=2**31)]
CtxId = Annotated[int, Meta(ge=1, le=2**31)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^(?!\.{1,2}\Z)[\w.+-]+\Z")]
Id = Annotated[int, Meta(ge=1, lt=2**53)]  # of a grant, a question, a job
Number = Annotated[int, Meta(ge=0, lt=2**53)]
Principal = Annotated[str, Meta(max_length=4096)]  # "/writer/helper"; "": a person
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class Message(Struct, forbid_unknown_fields=True):
    """Base of every call's arguments: a field that the table does not know is an error."""


class Reply(Struct, kw_only=True):
    """Base of every reply's body."""


class Empty(Message):
    pass


class Done(Reply):
    pass
