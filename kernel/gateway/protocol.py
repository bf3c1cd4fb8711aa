"""The frames between the kernel and the gateway."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class GatewayFrame(Struct, tag_field="t"):
    """Base of the frames between kernel and gateway."""

    pass


class Allow(GatewayFrame):
    """The public keys, in Z85, that may connect. Callers with other keys are ignored from now
    on.
    """

    keys: list[str]


class SendReply(GatewayFrame, tag="Say"):
    """Send a reply to a caller."""

    route: bytes
    data: bytes


class Listening(GatewayFrame, tag="Bound"):
    """The gateway listens."""

    address: str
    public: str  # the server's CURVE key


class ListenFailed(GatewayFrame, tag="Refused"):
    """The gateway cannot listen, and ends."""

    error: dict[str, str]


class MessageReceived(GatewayFrame, tag="Came"):
    """A caller with this key sent a message."""

    route: bytes
    key: str
    frames: list[bytes]


class PeerClosed(GatewayFrame, tag="Left"):
    """A caller is gone."""

    route: bytes
    why: str


ToGateway = Allow | SendReply
FromGateway = Listening | ListenFailed | MessageReceived | PeerClosed

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(ToGateway).decode
decode_report = msgspec.msgpack.Decoder(FromGateway).decode
