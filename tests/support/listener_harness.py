"""A listener in tests, and those who connect to it."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from pathlib import Path

from aios.kernel.entry.listener import Listener
from aios.kernel.entry.zmtp import COMMAND, GREETING, encode_frame
from aios.kernel.lib.poll import Poll

LONGEST = 1 << 20
BEGIN = GREETING + encode_frame(b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER", COMMAND)


class Heard:
    """A listener, and a record of its events."""

    def __init__(self, path: Path) -> None:
        self.poll, self.path = Poll(), path
        self.listener = Listener(path, self.poll, LONGEST, bounded=True)
        self.listener.turn_s = math.inf  # else what a turn takes depends on the machine
        self.known: set[bytes] = set()
        self.messages: list[tuple[bytes, int, bytes | None]] = []
        self.refused: list[str] = []
        self.closed: list[bytes] = []
        self.answer: Callable[[bytes], None] = lambda _route: None
        self.listener.on_message = self._take
        self.listener.is_known = self.known.__contains__
        self.listener.may_connect = lambda _os_pid: True
        self.listener.on_closed = self.closed.append
        self.listener.on_refused = lambda _os_pid, why: self.refused.append(why)

    def close(self) -> None:
        self.listener.close()
        self.poll.close()

    def _take(self, route: bytes, os_pid: int, data: bytes | None) -> None:
        self.messages.append((route, os_pid, data))
        self.answer(route)

    def turn(self) -> None:
        self.poll.wait(0.0)
        self.listener.resume()
        self.listener.flush()

    def settle(self) -> None:
        """Run until no event comes any more."""
        quiet = 0
        while quiet < 3:
            before = len(self.messages), len(self.closed), self.listener.held_bytes
            self.turn()
            after = len(self.messages), len(self.closed), self.listener.held_bytes
            quiet = quiet + 1 if after == before else 0


def connected(heard: Heard, *, known: bool = False) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(heard.path))
    end.setblocking(False)
    end.send(BEGIN)
    heard.settle()
    if known:
        heard.known.add(next(reversed(heard.listener.peers)))
        end.send(encode_frame(b"hello"))
        heard.settle()
        heard.messages.clear()
    return end
