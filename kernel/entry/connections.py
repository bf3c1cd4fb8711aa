"""Connections to the kernel over one Unix socket, spoken to in ZeroMQ's protocol.

What peers can make the kernel hold is bounded, for each and for all of them: one frame on the way
in, UNREAD answers on the way out, far less of both where nobody has been recognized; and STRANGERS
such connections, OF_ONE of one process; of more, the oldest goes. So is what one can make it do
before the others get a turn.

Who a peer is, Linux says: the process that made the connection. When that has ended, so has the
connection, whoever holds it, since its pid may soon be another's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aios.syscalls.errors import HomeBusy

from ..lib.linux import peer_of
from ..lib.poll import READ, WRITE, Poll
from .zmtp import Conversation, NotZmtp, framed

STRANGERS, OF_ONE = 512, 128
OF_PEER, SPARE = 2, 128  # descriptors that a peer takes; that the kernel has besides
UNREAD, UNREAD_BYTES = 4096, 16 << 20
STRANGER_BYTES = 1 << 16  # of a frame in, of answers out, while nobody is known there
HELD_BYTES = 48 << 20  # in and out, of all peers together
PIECE = 1 << 16  # bytes taken from one peer before the others get a turn
TURN = 64  # messages, likewise
BACKLOG = 4096  # that wait to be accepted
LINGER = 0.5  # seconds that a peer has to take what was said last
MANY = 64  # buffers of one sendmsg
ONE = 64  # bytes that a buffer costs, besides what it holds


class Lost(Exception):
    """Nothing can be said to a peer any more; the text says why."""


class Peer:
    """Raises OSError where the process at the other end has ended, or no descriptor is left."""

    def __init__(self, connected: socket.socket, route: bytes, longest: int) -> None:
        self.socket, self.route = connected, route
        self.os_pid, self.process = peer_of(connected)
        self.ended = select.poll()
        self.ended.register(self.process, select.POLLIN)
        self.talk = Conversation(longest)
        self.unsent: deque[bytes | memoryview] = deque()
        self.unsent_bytes = 0
        self.counted = 0  # bytes, among those of all
        self.given_up = False  # it does not read: nothing is said to it any more

    def say(self, data: bytes) -> None:
        self.unsent.append(data)
        self.unsent_bytes += len(data)

    @property
    def is_here(self) -> bool:
        """Whether the process that made the connection is the one that has its pid now."""
        return not self.ended.poll(0)

    @property
    def held_bytes(self) -> int:
        return len(self.talk.kept) + self.unsent_bytes + ONE * len(self.unsent)

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

    def close(self) -> None:
        self.socket.close()
        os.close(self.process)


class Listener:
    """Raises HomeBusy where another kernel listens on the path."""

    on_message: Callable[[bytes, int, bytes | None], None]  # route, OS pid, what zmtp makes of it
    is_known: Callable[[bytes], bool]  # by its route
    may_connect: Callable[[int], bool]  # by its OS pid
    on_closed: Callable[[bytes], object]  # its route
    on_refused: Callable[[int, str], object]  # OS pid of whose connection is cut off, and why
    is_busy: Callable[[], bool]  # so much is to be said that nobody is listened to now

    def __init__(self, path: Path, poll: Poll, longest: int, *, bounded: bool) -> None:
        """Frames of at most `longest` bytes; where `bounded`, who does not read is lost."""
        self.path, self.poll, self.longest, self.bounded = path, poll, longest, bounded
        self.is_busy = lambda: False
        self.peers: dict[bytes, Peer] = {}
        self.strangers: dict[bytes, Peer] = {}  # and some that are known by now; the oldest first
        self.to_flush: dict[bytes, Peer] = {}
        self.waiting: dict[bytes, Peer] = {}  # have said more than they had a turn for
        self.held_bytes = 0
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

    # --- out ------------------------------------------------------------------------------------

    def say(self, route: bytes, data: bytes) -> None:
        """At the next `flush`. Raises Lost."""
        peer = self.peers.get(route)
        if peer is None:
            raise Lost("closed its connection")
        if not peer.given_up:
            self._queue(peer, framed(data))
            peer = self.peers.get(route)
        if peer is None or peer.given_up:
            raise Lost("does not read its replies")
        self.to_flush[route] = peer

    def _queue(self, peer: Peer, data: bytes) -> None:
        """For it to read; who has too much of that already is given up."""
        if self._is_full(peer):
            self._flush(peer)
            if self._is_full(peer):
                self._give_up(peer)
        if not peer.given_up and peer.route in self.peers:
            peer.say(data)
            self._count(peer)

    def _is_full(self, peer: Peer) -> bool:
        if not self.bounded:
            return False
        most = UNREAD_BYTES if peer.talk.longest == self.longest else STRANGER_BYTES
        return len(peer.unsent) > UNREAD or peer.unsent_bytes > most

    def _give_up(self, peer: Peer) -> None:
        self.on_refused(peer.os_pid, "does not read what is answered")
        if self.is_known(peer.route):
            peer.give_up()
            self._count(peer)
        else:
            self._drop(peer)

    def flush(self) -> None:
        while self.to_flush:
            self._flush(self.to_flush.popitem()[1])

    def _flush(self, peer: Peer) -> None:
        if peer.route not in self.peers:
            return
        try:
            peer.flush()
        except OSError:
            self._drop(peer)
            return
        self._count(peer)
        self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        if peer.route in self.peers:
            read = 0 if peer.route in self.waiting else READ
            self.poll.change(peer.socket.fileno(), read | (WRITE if peer.unsent else 0))

    def _count(self, peer: Peer) -> None:
        """What it holds has changed. When all together hold too much, whoever holds most goes."""
        held = peer.held_bytes
        self.held_bytes += held - peer.counted
        peer.counted = held
        while self.bounded and self.held_bytes > HELD_BYTES:
            greediest = max(self.peers.values(), key=lambda other: other.counted)
            if greediest.unsent and not greediest.given_up:
                self._give_up(greediest)
            else:
                self.on_refused(greediest.os_pid, "has sent more than there is room for")
                self._drop(greediest)

    # --- in -------------------------------------------------------------------------------------

    def _accept(self, _events: int) -> None:
        try:
            connected, _ = self.socket.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor is left, or it has gone again
            self._turn_away(self._unknown())
            return
        connected.setblocking(False)
        longest = STRANGER_BYTES if self.bounded else self.longest
        try:
            peer = Peer(connected, next(self.numbers).to_bytes(8, "big"), longest)
        except ProcessLookupError:
            connected.close()
            return
        except OSError:  # no descriptor is left
            connected.close()
            self._turn_away(self._unknown())
            return
        self.peers[peer.route] = self.strangers[peer.route] = peer
        self.poll.watch(connected.fileno(), partial(self._ready, peer))
        self.poll.watch(peer.process, partial(self._ended, peer))
        if not self.may_connect(peer.os_pid):
            self._drop(peer)
            return
        self._answer(peer)
        self._make_room_beside(peer)

    def _make_room_beside(self, peer: Peer) -> None:
        """Turn the oldest stranger away where there are too many with `peer`, or where what the
        kernel opens itself would find no descriptor."""
        if OF_PEER * len(self.peers) + SPARE > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            self._turn_away(self._unknown())
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

    def _ended(self, peer: Peer, _events: int) -> None:
        """Its process has: what that has said is heard, and nothing that others say there."""
        if peer.is_here:  # it has the descriptor of one that went in this turn
            return
        self.poll.forget(peer.process)
        with contextlib.suppress(OSError):
            peer.socket.shutdown(socket.SHUT_RD)

    def is_here(self, route: bytes) -> bool:
        """Whether the process that made that connection still runs."""
        return route in self.peers and self.peers[route].is_here

    def estrange(self, route: bytes) -> None:
        """Nobody is known on that connection any more."""
        if route in self.peers:
            self.strangers[route] = self.peers[route]

    def go_on(self) -> None:
        """Listen to those who have said more than they had a turn for."""
        waiting, self.waiting = self.waiting, {}
        for peer in waiting.values():
            if peer.route in self.peers:
                self._listen(peer, b"")

    def _ready(self, peer: Peer, events: int) -> None:
        if events & WRITE:
            self._flush(peer)
        if peer.route in self.waiting and not events & WRITE and self.is_busy():
            self._drop(peer)  # it is gone
        if events == WRITE or peer.route in self.waiting or peer.route not in self.peers:
            return
        if self.is_busy():
            self.waiting[peer.route] = peer
            self._watch(peer)
            return
        try:
            data = peer.socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._listen(peer, data)
        else:
            self._drop(peer)

    def _listen(self, peer: Peer, data: bytes) -> None:
        """Hand on what it says, as much as it has a turn for."""
        try:
            for turn in itertools.count():
                if self.bounded and (turn == TURN or self.is_busy()):
                    peer.talk.kept += data
                    peer.talk.more = True
                    break
                for message in peer.talk.take(data, 1):
                    self.on_message(peer.route, peer.os_pid, message)
                data = b""
                self._answer(peer)
                if peer.talk.longest < self.longest and self.is_known(peer.route):
                    peer.talk.longest = self.longest
                if not peer.talk.more or peer.route not in self.peers:
                    break
        except NotZmtp as why:
            self.on_refused(peer.os_pid, str(why))
            self._drop(peer)
        if peer.route in self.peers:
            if peer.talk.more:
                self.waiting[peer.route] = peer
            self._count(peer)
            self._watch(peer)

    def _answer(self, peer: Peer) -> None:
        if peer.talk.answer and not peer.given_up:
            self._queue(peer, bytes(peer.talk.answer))
            self._flush(peer)
        peer.talk.answer.clear()

    def _drop(self, peer: Peer) -> None:
        if self.peers.pop(peer.route, None) is not None:
            for others in (self.strangers, self.to_flush, self.waiting):
                others.pop(peer.route, None)
            self.held_bytes -= peer.counted
            peer.counted = 0
            self.poll.forget(peer.socket.fileno())
            if peer.process in self.poll.run:
                self.poll.forget(peer.process)
            peer.close()
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
