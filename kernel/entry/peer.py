"""One connection to the kernel: its socket, the process that made it, what is not sent yet."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
from collections import deque

from ..lib.linux import peer_of
from .zmtp import ZmtpConnection

SENDMSG_BUFFERS = 64
BUFFER_OVERHEAD_BYTES = 64  # of a buffer object in Python


class PeerLost(Exception):
    """Nothing can be sent to a peer any more; the text says why."""


class Peer:
    """One connection.

    Raises:
        OSError: the process at the other end has ended, or no descriptor is left.
    """

    def __init__(self, connected: socket.socket, route: bytes, max_frame_bytes: int) -> None:
        self.socket, self.route = connected, route
        self.os_pid, self.process = peer_of(connected)
        self.ended = select.poll()
        self.ended.register(self.process, select.POLLIN)
        self.protocol = ZmtpConnection(max_frame_bytes)
        self.unsent: deque[bytes | memoryview] = deque()
        self.unsent_bytes = 0
        self.counted_bytes = 0  # its part of the listener's held_bytes
        self.given_up = False  # it does not read: nothing is sent to it any more

    def send(self, data: bytes) -> None:
        self.unsent.append(data)
        self.unsent_bytes += len(data)

    @property
    def is_here(self) -> bool:
        """Tell whether the process that made the connection still runs."""
        return not self.ended.poll(0)

    @property
    def held_bytes(self) -> int:
        return (
            len(self.protocol.buffer) + self.unsent_bytes + BUFFER_OVERHEAD_BYTES * len(self.unsent)
        )

    def give_up(self) -> None:
        """Send nothing any more, but stay connected.

        libzmq does not notice a peer that closes while it holds more than it may for its own
        program to read: it would wait forever to send.
        """
        self.given_up = True
        self.unsent.clear()
        self.unsent_bytes = 0

    def flush(self) -> None:
        """Send as much as the peer takes. Raises OSError if it is gone."""
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                sent = self.socket.sendmsg(list(itertools.islice(self.unsent, SENDMSG_BUFFERS)))
                self.unsent_bytes -= sent
                while sent and sent >= len(self.unsent[0]):
                    sent -= len(self.unsent.popleft())
                if sent:
                    self.unsent[0] = memoryview(self.unsent[0])[sent:]

    def close(self) -> None:
        self.socket.close()
        os.close(self.process)
