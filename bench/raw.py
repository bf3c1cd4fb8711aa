"""Connections to the kernel by hand: libzmq reads ahead, and sends nothing that is wrong."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from aios.kernel.entry.zmtp import COMMAND, GREETING, ZmtpConnection, encode_frame
from aios.syscalls.home import endpoint
from aios.syscalls.wire import ABI_VERSION, DONE, pack_call, unpack_reply

HANDSHAKE = GREETING + encode_frame(b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER", COMMAND)
TIMEOUT_S = 30.0  # for the kernel to take something, or to answer
MAX_REPLY_BYTES = 1 << 20


def path_of(home: Path) -> str:
    return endpoint(home).removeprefix("ipc://")


def dial(home: Path) -> socket.socket:
    """Open a connection, and do not say hello on it."""
    end = socket.socket(socket.AF_UNIX)
    end.connect(path_of(home))  # without a limit it waits while too many others do
    end.settimeout(TIMEOUT_S)
    end.sendall(HANDSHAKE)
    return end


def call(number: int, call: str, heard: int = 0, /, **args: Any) -> bytes:
    return encode_frame(pack_call(number, call, args, heard))


def hello(**who: Any) -> bytes:
    return call(1, "hello", version=ABI_VERSION, **who)


def is_welcome(end: socket.socket) -> bool:
    """Say hello. Return whether the kernel takes it, rather than refusing it or closing the
    connection."""
    protocol, replies = ZmtpConnection(MAX_REPLY_BYTES), list[bytes | None]()
    try:
        end.sendall(hello())
        while not replies and (data := end.recv(1 << 16)):
            replies = list(protocol.receive(data))
    except ConnectionError:
        return False
    return any(reply is not None and unpack_reply(reply)[1] == DONE for reply in replies)
