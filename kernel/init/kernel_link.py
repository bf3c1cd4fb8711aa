"""init's end of the socket to a kernel."""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections import deque

from .protocol import MAX_FRAME_BYTES, ToInit, ToKernel, decode_to_init, encode


class KernelLink:
    """A connection to one kernel. `theirs` is the other end, to be inherited by the kernel."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.selector = selector
        self.unsent: deque[bytes] = deque()
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        selector.register(self.ours, selectors.EVENT_READ)

    def receive(self) -> ToInit | None:
        """Return the next frame, or None if there is none, or the kernel is dying."""
        try:
            data = self.ours.recv(MAX_FRAME_BYTES)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""
        if not data:
            with contextlib.suppress(KeyError):
                self.selector.unregister(self.ours)
            return None
        frame: ToInit = decode_to_init(data)
        return frame

    def send(self, frame: ToKernel) -> None:
        """Send a frame as soon as the kernel reads."""
        self.unsent.append(encode(frame))
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsent:
                self.ours.send(self.unsent[0])
                self.unsent.popleft()
        with contextlib.suppress(KeyError):  # a dying kernel is not watched any more
            write = selectors.EVENT_WRITE if self.unsent else 0
            self.selector.modify(self.ours, selectors.EVENT_READ | write)

    def close(self) -> None:
        """Close this end. The kernel has ended, and is not watched any more."""
        self.ours.close()
