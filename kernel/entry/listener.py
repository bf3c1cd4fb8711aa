"""Connections to the kernel over one Unix socket, in ZeroMQ's protocol.

A stranger is a peer that has not said hello yet. The memory that peers can make the kernel hold is
bounded, for each and for all: one frame in and MAX_UNREAD_REPLIES out, and far less for a stranger.
Strangers are limited to MAX_STRANGERS, and to MAX_STRANGERS_PER_PROCESS of one process; then the
oldest is disconnected. The work that one peer can cause before the others get a turn is bounded
too, and the time that all of one tree of agents take.

Linux says which process made a connection. When that process has ended, the connection is closed,
whoever holds it, since the pid may soon be another's.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import resource
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aios.syscalls.errors import HomeBusy

from ..lib.poll import READ, WRITE, Poll
from .peer import Peer, PeerLost
from .zmtp import ZmtpError, encode_frame

MAX_STRANGERS, MAX_STRANGERS_PER_PROCESS = 512, 128
PEER_FDS, SPARE_FDS = 2, 128  # descriptors for each peer, and for all else
MAX_UNREAD_REPLIES, MAX_UNREAD_BYTES = 4096, 16 << 20
MAX_STRANGER_BYTES = 1 << 16  # of a frame in and of replies out, for a stranger
MAX_HELD_BYTES = 48 << 20  # in and out, of all peers
READ_BYTES = 1 << 16  # read from one peer before others get a turn
ACCEPT_BACKLOG = 4096
LINGER_S = 0.5  # for peers to read the last replies
TURN_S = 0.01  # that one tree of agents has of a turn, and one call more


class Listener:
    """Accept connections on a path, and exchange messages with the peers.

    Raises:
        HomeBusy: another kernel listens on the path.
    """

    on_message: Callable[
        [bytes, int, bytes | None], None
    ]  # route, OS pid, message of ZmtpConnection
    is_known: Callable[[bytes], bool]  # of a route
    may_connect: Callable[[int], bool]  # of an OS pid
    on_closed: Callable[[bytes], object]  # of a route
    on_refused: Callable[[int, str], object]  # OS pid of the refused peer, and why
    is_busy: Callable[[], bool]  # True: read nothing now
    tree_of: Callable[[bytes], str]  # of agents, by a route

    def __init__(self, path: Path, poll: Poll, max_frame_bytes: int, *, bounded: bool) -> None:
        """`bounded`: limit the memory and the turns of peers, and give up those that do not
        read.
        """
        self.path, self.poll, self.max_frame_bytes, self.bounded = (
            path,
            poll,
            max_frame_bytes,
            bounded,
        )
        self.is_busy, self.tree_of = lambda: False, bytes.hex
        self.turn_s = TURN_S if bounded else math.inf
        self.taken_s: dict[str, float] = {}  # of this turn, by tree
        self.peers: dict[bytes, Peer] = {}
        self.strangers: dict[bytes, Peer] = {}  # oldest first, with some that are known by now
        self.to_flush: dict[bytes, Peer] = {}
        self.waiting: dict[bytes, Peer] = {}  # with messages left for the next turn
        self.held_bytes = 0
        self.received = memoryview(bytearray(READ_BYTES))
        self.numbers = itertools.count(1)
        if path.exists():
            if _is_served(path):
                raise HomeBusy(f"another kernel listens at {path}", "stop it first")
            path.unlink()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(os.fspath(path))
        path.chmod(0o600)
        self.socket.listen(ACCEPT_BACKLOG)
        self.socket.setblocking(False)
        poll.watch(self.socket.fileno(), self._accept)

    # --- out ------------------------------------------------------------------------------------

    def send(self, route: bytes, data: bytes) -> None:
        """Queue a message for the next `flush`. Raises PeerLost."""
        peer = self.peers.get(route)
        if peer is None:
            raise PeerLost("closed its connection")
        if not peer.given_up:
            self._queue(peer, encode_frame(data))
            peer = self.peers.get(route)
        if peer is None or peer.given_up:
            raise PeerLost("does not read its replies")
        self.to_flush[route] = peer

    def _queue(self, peer: Peer, data: bytes) -> None:
        """Queue data for a peer, or give the peer up if too much is queued already."""
        if self._is_full(peer):
            self._flush(peer)
            if self._is_full(peer):
                self._give_up(peer)
        if not peer.given_up and peer.route in self.peers:
            peer.send(data)
            self._recount(peer)

    def _is_full(self, peer: Peer) -> bool:
        if not self.bounded:
            return False
        most = (
            MAX_UNREAD_BYTES
            if peer.protocol.max_frame_bytes == self.max_frame_bytes
            else MAX_STRANGER_BYTES
        )
        return len(peer.unsent) > MAX_UNREAD_REPLIES or peer.unsent_bytes > most

    def _give_up(self, peer: Peer) -> None:
        self.on_refused(peer.os_pid, "does not read what is answered")
        if self.is_known(peer.route):
            peer.give_up()
            self._recount(peer)
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
        self._recount(peer)
        self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        if peer.route in self.peers:
            read = 0 if peer.route in self.waiting else READ
            self.poll.change(peer.socket.fileno(), read | (WRITE if peer.unsent else 0))

    def _recount(self, peer: Peer) -> None:
        """Update the total of held bytes; while that is too much, give up the peer that holds
        most.
        """
        held = peer.held_bytes
        if held == peer.counted_bytes:
            return
        self.held_bytes += held - peer.counted_bytes
        peer.counted_bytes = held
        while self.bounded and self.held_bytes > MAX_HELD_BYTES:
            greediest = max(self.peers.values(), key=lambda other: other.counted_bytes)
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
        except OSError:  # no descriptor is left, or the peer is gone
            self._refuse_oldest(self._list_strangers())
            return
        connected.setblocking(False)
        max_frame_bytes = MAX_STRANGER_BYTES if self.bounded else self.max_frame_bytes
        try:
            peer = Peer(connected, next(self.numbers).to_bytes(8, "big"), max_frame_bytes)
        except ProcessLookupError:
            connected.close()
            return
        except OSError:  # no descriptor is left
            connected.close()
            self._refuse_oldest(self._list_strangers())
            return
        self.peers[peer.route] = self.strangers[peer.route] = peer
        self.poll.watch(connected.fileno(), partial(self._ready, peer))
        self.poll.watch(peer.process, partial(self._ended, peer))
        if not self.may_connect(peer.os_pid):
            self._drop(peer)
            return
        self._send_output(peer)
        self._limit_strangers(peer)

    def _limit_strangers(self, peer: Peer) -> None:
        """Disconnect the oldest stranger if there are too many, or too few descriptors are left."""
        if PEER_FDS * len(self.peers) + SPARE_FDS > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
            self._refuse_oldest(self._list_strangers())
        if len(self.strangers) > MAX_STRANGERS_PER_PROCESS:
            unknown = self._list_strangers()
            own = [other for other in unknown if other.os_pid == peer.os_pid]
            if len(own) > MAX_STRANGERS_PER_PROCESS:
                self._refuse_oldest(own)
            elif len(unknown) > MAX_STRANGERS:
                self._refuse_oldest(unknown)

    def _list_strangers(self) -> list[Peer]:
        """List the strangers, the oldest first."""
        known = [route for route in self.strangers if self.is_known(route)]
        for route in known:
            del self.strangers[route]
        return list(self.strangers.values())

    def _refuse_oldest(self, peers: list[Peer]) -> None:
        """Disconnect the first of these peers."""
        if peers:
            self.on_refused(peers[0].os_pid, "too many connections without a hello")
            self._drop(peers[0])

    def _ended(self, peer: Peer, _events: int) -> None:
        """Handle the end of a peer's process: read what it has sent, and nothing that others
        send.
        """
        if peer.is_here:  # its descriptor had another peer's number
            return
        self.poll.forget(peer.process)
        with contextlib.suppress(OSError):
            peer.socket.shutdown(socket.SHUT_RD)

    def is_here(self, route: bytes) -> bool:
        """Tell whether the process that made this connection still runs."""
        return route in self.peers and self.peers[route].is_here

    def make_stranger(self, route: bytes) -> None:
        """Treat a peer as a stranger again, as after its process has said goodbye."""
        if route in self.peers:
            self.strangers[route] = self.peers[route]

    def resume(self) -> None:
        """Begin a turn: handle the messages that the last one left. Peers that have to wait again
        come before those that had their turn."""
        self.taken_s.clear()
        waiting, self.waiting = self.waiting, {}
        left = {}
        for route, peer in waiting.items():
            if route in self.peers and self._has_to_wait(route):
                left[route] = peer
            elif route in self.peers:
                self._receive(peer, b"") if peer.protocol.has_more else self._read(peer)
        self.waiting = {route: p for route, p in left.items() if route in self.peers} | self.waiting

    def _has_to_wait(self, route: bytes) -> bool:
        taken_s = self.taken_s.get(self.tree_of(route), 0.0) if self.taken_s else 0.0
        return self.is_busy() or taken_s >= self.turn_s

    def _ready(self, peer: Peer, events: int) -> None:
        if events & WRITE:
            self._flush(peer)
        if peer.route in self.waiting and not events & WRITE and self.is_busy():
            self._drop(peer)  # readable while unwatched: it is gone
        if events == WRITE or peer.route in self.waiting or peer.route not in self.peers:
            return
        if self._has_to_wait(peer.route):
            self.waiting[peer.route] = peer
            self._watch(peer)
        else:
            self._read(peer)

    def _read(self, peer: Peer) -> None:
        try:
            size = peer.socket.recv_into(self.received)
        except BlockingIOError:
            self._watch(peer)
            return
        except OSError:
            size = 0
        if size:
            self._receive(peer, self.received[:size])
        else:
            self._drop(peer)

    def _receive(self, peer: Peer, data: bytes | memoryview) -> None:
        """Handle received data, within the limits of one turn."""
        protocol, route = peer.protocol, peer.route
        tree, is_over = self.tree_of(route), False
        began = time.perf_counter() - self.taken_s.get(tree, 0.0)
        try:
            while True:
                for message in protocol.receive(data):
                    self.on_message(route, peer.os_pid, message)
                    if protocol.max_frame_bytes < self.max_frame_bytes and self.is_known(route):
                        protocol.max_frame_bytes = self.max_frame_bytes
                    self.taken_s[tree] = time.perf_counter() - began
                    is_over = self.taken_s[tree] >= self.turn_s
                    if is_over or route not in self.peers or (self.bounded and self.is_busy()):
                        break
                data = b""
                self._send_output(peer)
                if self.bounded or is_over or not protocol.has_more or route not in self.peers:
                    break
        except ZmtpError as why:
            self.on_refused(peer.os_pid, str(why))
            self._drop(peer)
        if peer.route in self.peers:
            if peer.protocol.has_more:
                self.waiting[peer.route] = peer
            self._recount(peer)
            self._watch(peer)

    def _send_output(self, peer: Peer) -> None:
        if peer.protocol.output and not peer.given_up:
            self._queue(peer, bytes(peer.protocol.output))
            self._flush(peer)
        peer.protocol.output.clear()

    def _drop(self, peer: Peer) -> None:
        if self.peers.pop(peer.route, None) is not None:
            for others in (self.strangers, self.to_flush, self.waiting):
                others.pop(peer.route, None)
            self.held_bytes -= peer.counted_bytes
            peer.counted_bytes = 0
            self.poll.forget(peer.socket.fileno())
            if peer.process in self.poll.run:
                self.poll.forget(peer.process)
            peer.close()
            self.on_closed(peer.route)

    def close(self) -> None:
        """Send the last replies, wait LINGER_S at most, and close all connections."""
        limit = time.monotonic() + LINGER_S
        for peer in list(self.peers.values()):
            peer.socket.settimeout(max(0.0, limit - time.monotonic()))
            self._flush(peer)
            self._drop(peer)
        self.poll.forget(self.socket.fileno())
        self.socket.close()
        self.path.unlink(missing_ok=True)


def _is_served(path: Path) -> bool:
    """Tell whether somebody listens on the path."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(os.fspath(path))
        return True
    return False
