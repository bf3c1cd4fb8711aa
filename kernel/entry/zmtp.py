"""What ZeroMQ's sockets say on a connection (ZMTP 3.0, without security), as the side that listens.
Pure: bytes in, messages out.

libzmq has no bound on what a peer may make it keep: all parts of a message, however many come
before the last.
"""

from __future__ import annotations

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
PARTS = 1024  # of a message; none is kept, and one whose last never came would keep its peer busy
FRAMES = 64  # taken in one go: parts and commands as well
PING_CONTEXT = 16  # bytes that a PING may have answered, as the protocol says
READY = b"\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0"
PING, PONG = b"\x04PING", b"\x04PONG"


class NotZmtp(Exception):
    """A peer says what is not the protocol, or too much of it."""


class Conversation:
    """With one peer, whose frames have at most `longest` bytes; no more than one is ever kept, and
    what came with its end.

    What is in `answer` is to be sent to it. `more`: there may be messages that were not taken yet.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.kept = bytearray()
        self.at = 0  # what is before was taken
        self.answer = bytearray(GREETING)
        self.greeted = self.more = False
        self.parts = 0  # of the message that has begun

    def take(self, data: bytes, most: int = 1 << 30) -> list[bytes | None]:
        """The next messages that are whole with `data`; None is one in several parts.

        Raises:
            NotZmtp: the connection is of no use any more.
        """
        self.kept += data
        found: list[bytes | None] = []
        if not self.greeted and not self._greet():
            return found
        self.more = True
        for _ in range(FRAMES):
            frame = self._frame(self.at)
            if frame is None:
                self.more = False
                del self.kept[: self.at]
                self.at = 0
                break
            self._hear(frame, found)
            if len(found) == most:
                break
        return found

    def _hear(self, frame: tuple[int, int, int], found: list[bytes | None]) -> None:
        start, self.at, flags = frame
        if flags & COMMAND:
            self._obey(bytes(self.kept[start : self.at]))
            return
        self.parts += 1
        if self.parts > PARTS:
            raise NotZmtp("a message without an end")
        if not flags & MORE:
            found.append(bytes(self.kept[start : self.at]) if self.parts == 1 else None)
            self.parts = 0

    def _frame(self, at: int) -> tuple[int, int, int] | None:
        """The frame at `at`: where its body begins and ends, its flags; None: not yet whole."""
        left = len(self.kept) - at
        if left < 2:
            return None
        flags = self.kept[at]
        head = 9 if flags & LONG else 2
        if left < head:
            return None
        size = int.from_bytes(self.kept[at + 1 : at + head], "big")
        if flags > MORE | LONG | COMMAND or size > self.longest:
            raise NotZmtp(f"a frame of {size} bytes with flags {flags}")
        return (at + head, at + head + size, flags) if left >= head + size else None

    def _greet(self) -> bool:
        said, meant = bytes(self.kept[: len(GREETING)]), GREETING
        if said[:1] != meant[: len(said[:1])] or said[10:11] > b"\x7f":
            raise NotZmtp("not a greeting")
        if len(said) < len(meant):
            return False
        if said[9] & 1 == 0 or said[10] < 3 or said[12:32] != meant[12:32]:
            raise NotZmtp("another version of the protocol, or another mechanism")
        del self.kept[: len(meant)]
        self.greeted = True
        self.answer += framed(READY, COMMAND)
        return True

    def _obey(self, command: bytes) -> None:
        if command.startswith(PING):
            context = command[len(PING) + 2 :]  # behind its time
            if len(context) > PING_CONTEXT:
                raise NotZmtp(f"a PING with {len(context)} bytes to be sent back")
            self.answer += framed(PONG + context, COMMAND)


def framed(body: bytes, flags: int = 0) -> bytes:
    """`body` as a frame, the only one of its message."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body
