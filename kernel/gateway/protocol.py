"""What the kernel and the gateway say to each other, over a connection of theirs alone."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Frame(Struct, tag_field="t"):
    pass


class Allow(Frame):
    """Public keys, in Z85; whoever has another is not heard any more."""

    keys: list[str]


class Say(Frame):
    route: bytes
    data: bytes


class Bound(Frame):
    """It listens."""

    address: str
    public: str  # the kernel's key


class Refused(Frame):
    """It cannot listen, and ends."""

    error: dict[str, str]


class Came(Frame):
    """A message, from the owner of this key."""

    route: bytes
    key: str
    frames: list[bytes]


class Left(Frame):
    route: bytes
    why: str


ToGateway = Allow | Say
FromGateway = Bound | Refused | Came | Left

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(ToGateway).decode
decode_report = msgspec.msgpack.Decoder(FromGateway).decode
