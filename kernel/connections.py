"""Connections to the kernel over one Unix socket, spoken to in ZeroMQ's protocol.

What a peer can make the kernel hold is bounded: one frame on the way in, UNREAD replies on the way
out, and STRANGERS connections of which nobody has been recognized, OF_ONE of one process; of more,
the oldest goes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aios.syscalls.errors import HomeBusy

from .poll import READ, WRITE, Poll
from .zmtp import Conversation, NotZmtp, framed

STRANGERS, OF_ONE = 512, 128
UNREAD, UNREAD_BYTES = 4096, 16 << 20
PIECE = 1 << 16  # bytes taken from one peer before the others get a turn
BACKLOG = 4096  # that wait to be accepted
LINGER = 0.5  # seconds that a peer has to take what was said last
MANY = 64  # buffers of one sendmsg


class Lost(Exception):
    """Nothing can be said to a peer any more; the text says why."""


class Peer:
    def __init__(self, connected: socket.socket, route: bytes, longest: int) -> None:
        self.socket, self.route = connected, route
        said = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.os_pid: int = struct.unpack("=iII", said)[0]  # as Linux says
        self.talk = Conversation(longest)
        self.unsent: deque[bytes | memoryview] = deque()
        self.unsent_bytes = 0
        self.given_up = False  # it does not read: nothing is said to it any more

    def say(self, data: bytes) -> None:
        self.unsent.append(data)
        self.unsent_bytes += len(data)

    @property
    def is_full(self) -> bool:
        return len(self.unsent) > UNREAD or self.unsent_bytes > UNREAD_BYTES

    def give_up(self) -> None:
        """It stays connected: libzmq would wait forever to send to whoever has gone, and not
        notice, while it holds more than it may for its own program to read."""
        self.given_up = True
        self.unsent.clear()
        self.unsent_bytes = 0

    def flush(self) -> None:
        """Send what it takes. Raises OSError where it is gone."""
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                sent = self.socket.sendmsg(list(itertools.islice(self.unsent, MANY)))
                self.unsent_bytes -= sent
                while sent and sent >= len(self.unsent[0]):
                    sent -= len(self.unsent.popleft())
                if sent:
                    self.unsent[0] = memoryview(self.unsent[0])[sent:]


class Listener:
    """Raises HomeBusy where another kernel listens on the path."""

    on_message: Callable[[bytes, int, bytes | None], None]  # route, OS pid, what zmtp makes of it
    is_known: Callable[[bytes], bool]  # by its route
    may_connect: Callable[[int], bool]  # by its OS pid
    on_closed: Callable[[bytes], object]  # its route
    on_refused: Callable[[int, str], object]  # OS pid of whose connection is cut off, and why

    def __init__(self, path: Path, poll: Poll, longest: int, *, bounded: bool) -> None:
        """Frames of at most `longest` bytes; where `bounded`, who does not read is lost."""
        self.path, self.poll, self.longest, self.bounded = path, poll, longest, bounded
        self.peers: dict[bytes, Peer] = {}
        self.strangers: dict[bytes, Peer] = {}  # and some that are known by now; the oldest first
        self.to_flush: dict[bytes, Peer] = {}
        self.numbers = itertools.count(1)
        if path.exists():
            if _answers(path):
                raise HomeBusy(f"another kernel listens at {path}", "stop it first")
            path.unlink()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(os.fspath(path))
        path.chmod(0o600)
        self.socket.listen(BACKLOG)
        self.socket.setblocking(False)
        poll.watch(self.socket.fileno(), self._accept)

    def say(self, route: bytes, data: bytes) -> None:
        """At the next `flush`. Raises Lost."""
        peer = self.peers.get(route)
        if peer is None:
            raise Lost("closed its connection")
        if self.bounded and peer.is_full:
            self._flush(peer)
            if peer.is_full:
                peer.give_up()
        if peer.given_up:
            raise Lost("does not read its replies")
        peer.say(framed(data))
        self.to_flush[route] = peer

    def flush(self) -> None:
        while self.to_flush:
            self._flush(self.to_flush.popitem()[1])

    def _flush(self, peer: Peer) -> None:
        try:
            peer.flush()
        except OSError:
            self._drop(peer)
            return
        self.poll.change(peer.socket.fileno(), READ | WRITE if peer.unsent else READ)

    def _accept(self, _events: int) -> None:
        try:
            connected, _ = self.socket.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor is left, or it has gone again
            self._turn_away(self._unknown())
            return
        connected.setblocking(False)
        peer = Peer(connected, next(self.numbers).to_bytes(8, "big"), self.longest)
        self.peers[peer.route] = self.strangers[peer.route] = peer
        self.poll.watch(connected.fileno(), partial(self._ready, peer))
        if not self.may_connect(peer.os_pid):
            self._drop(peer)
            return
        self._answer(peer)
        if len(self.strangers) > OF_ONE:
            unknown = self._unknown()
            own = [other for other in unknown if other.os_pid == peer.os_pid]
            if len(own) > OF_ONE:
                self._turn_away(own)
            elif len(unknown) > STRANGERS:
                self._turn_away(unknown)

    def _unknown(self) -> list[Peer]:
        """The oldest first."""
        known = [route for route in self.strangers if self.is_known(route)]
        for route in known:
            del self.strangers[route]
        return list(self.strangers.values())

    def _turn_away(self, peers: list[Peer]) -> None:
        """The first of them."""
        if peers:
            self.on_refused(peers[0].os_pid, "too many connections without a hello")
            self._drop(peers[0])

    def _ready(self, peer: Peer, events: int) -> None:
        if events & WRITE:
            self._flush(peer)
        if events == WRITE:
            return
        try:
            data = peer.socket.recv(PIECE)
            messages = peer.talk.take(data)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        except NotZmtp as why:
            self.on_refused(peer.os_pid, str(why))
            data = b""
        if not data:
            self._drop(peer)
            return
        self._answer(peer)
        for message in messages:
            self.on_message(peer.route, peer.os_pid, message)

    def _answer(self, peer: Peer) -> None:
        if peer.talk.answer and not peer.given_up:
            peer.say(peer.talk.answer)
            peer.talk.answer = b""
            self._flush(peer)

    def _drop(self, peer: Peer) -> None:
        if self.peers.pop(peer.route, None) is not None:
            self.strangers.pop(peer.route, None)
            self.to_flush.pop(peer.route, None)
            self.poll.forget(peer.socket.fileno())
            peer.socket.close()
            self.on_closed(peer.route)

    def close(self) -> None:
        limit = time.monotonic() + LINGER
        for peer in list(self.peers.values()):
            peer.socket.settimeout(max(0.0, limit - time.monotonic()))
            self._flush(peer)
            self._drop(peer)
        self.poll.forget(self.socket.fileno())
        self.socket.close()
        self.path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(os.fspath(path))
        return True
    return False
