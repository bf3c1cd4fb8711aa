"""The listening side of ZMTP 3.0, ZeroMQ's protocol, without security. Pure: bytes in, messages
out.

libzmq would not do: it keeps all parts of a message, however many arrive before the last.
"""

from __future__ import annotations

from collections.abc import Iterator

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
MAX_PARTS = 1024  # of a message, which may never end
MAX_FRAMES = 64  # handled at once, also parts and commands
MAX_PING_CONTEXT_BYTES = 16  # the protocol's limit on what a PONG repeats
READY = b"\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0"
PING, PONG = b"\x04PING", b"\x04PONG"


class ZmtpError(Exception):
    """The peer violates the protocol, or sends too much."""


class ZmtpConnection:
    """One connection, whose frames have at most `max_frame_bytes`.

    It never keeps more than one frame, and the data received with its end. `output` has to be sent
    to the peer. `has_more` tells that there may be messages that were not returned yet.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self.buffer = bytearray()
        self.at = 0  # bytes before this were handled
        self.output = bytearray(GREETING)
        self.greeted = self.has_more = False
        self.parts = 0  # of the message that is being received

    def receive(self, data: bytes | memoryview) -> Iterator[bytes | None]:
        """Add received data and iterate over the next whole messages; None for one in several
        parts. Messages that the caller does not take are left for the next time.

        Raises:
            ZmtpError: the connection has to be closed.
        """
        self.buffer += data
        if not self.greeted and not self._receive_greeting():
            return
        self.has_more = True
        for _ in range(MAX_FRAMES):
            frame = self._frame(self.at)
            if frame is None:
                self.has_more = False
                del self.buffer[: self.at]
                self.at = 0
                return
            start, self.at, flags = frame
            if flags & COMMAND:
                self._handle_command(bytes(self.buffer[start : self.at]))
                continue
            self.parts += 1
            if self.parts > MAX_PARTS:
                raise ZmtpError("a message without an end")
            if not flags & MORE:
                parts, self.parts = self.parts, 0
                yield bytes(self.buffer[start : self.at]) if parts == 1 else None

    def _frame(self, at: int) -> tuple[int, int, int] | None:
        """Return start and end of the body of the frame at `at`, and its flags; None if not yet
        whole.
        """
        left = len(self.buffer) - at
        if left < 2:
            return None
        flags, head, size = self.buffer[at], 2, self.buffer[at + 1]
        if flags & LONG:
            head = 9
            if left < head:
                return None
            size = int.from_bytes(self.buffer[at + 1 : at + head], "big")
        if flags > MORE | LONG | COMMAND or size > self.max_frame_bytes:
            raise ZmtpError(f"a frame of {size} bytes with flags {flags}")
        return (at + head, at + head + size, flags) if left >= head + size else None

    def _receive_greeting(self) -> bool:
        said, meant = bytes(self.buffer[: len(GREETING)]), GREETING
        if said[:1] != meant[: len(said[:1])] or said[10:11] > b"\x7f":
            raise ZmtpError("not a greeting")
        if len(said) < len(meant):
            return False
        if said[9] & 1 == 0 or said[10] < 3 or said[12:32] != meant[12:32]:
            raise ZmtpError("another version of the protocol, or another mechanism")
        del self.buffer[: len(meant)]
        self.greeted = True
        self.output += encode_frame(READY, COMMAND)
        return True

    def _handle_command(self, command: bytes) -> None:
        if command.startswith(PING):
            context = command[len(PING) + 2 :]  # after the TTL
            if len(context) > MAX_PING_CONTEXT_BYTES:
                raise ZmtpError(f"a PING with {len(context)} bytes to be sent back")
            self.output += encode_frame(PONG + context, COMMAND)


def encode_frame(body: bytes, flags: int = 0) -> bytes:
    """Return `body` as a frame, the only one of its message."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body
