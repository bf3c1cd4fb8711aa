"""Ways out over sockets."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from probes.base import Probe, Targets

NAME = "own.sock"


def connect(family: int, kind: int, address: Any, protocol: int = 0) -> bool:
    with socket.socket(family, kind, protocol) as end:
        end.connect(address)
        return True


def opened(family: int, kind: int, protocol: int = 0) -> bool:
    with socket.socket(family, kind, protocol):
        return True


def bound(family: int, address: Any) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as end:
        end.bind(address)
        if address == NAME:
            Path(NAME).unlink()
        return True


def datagrams(kind: int) -> bool:
    """From one half of a pair they go to any name."""
    for end in socket.socketpair(socket.AF_UNIX, kind):
        end.close()
    return True


def heard_anywhere(_: Targets) -> bool:
    with socket.socket(socket.AF_INET) as end:
        end.listen(1)
        return True


def fast_open(t: Targets) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as end:
        end.sendto(b"x", 0x20000000, ("127.0.0.1", t["tcp"]))
        return True


SOCKETS: dict[str, Probe] = {
    "TCP": lambda t: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", t["tcp"])),
    "TCP over IPv6": lambda t: opened(socket.AF_INET6, socket.SOCK_STREAM),
    "TCP fast open": fast_open,
    "bind TCP": lambda t: bound(socket.AF_INET, ("127.0.0.1", 0)),
    "multipath TCP": lambda t: opened(socket.AF_INET, socket.SOCK_STREAM, 262),
    "UDP": lambda t: opened(socket.AF_INET, socket.SOCK_DGRAM),
    "raw": lambda t: opened(socket.AF_INET, socket.SOCK_RAW, 1),
    "netlink": lambda t: opened(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "packet": lambda t: opened(socket.AF_PACKET, socket.SOCK_RAW, 0),
    "vsock": lambda t: opened(socket.AF_VSOCK, socket.SOCK_STREAM),
    "AF_ALG": lambda t: opened(socket.AF_ALG, socket.SOCK_SEQPACKET),
    "a person's Unix socket": lambda t: connect(socket.AF_UNIX, socket.SOCK_STREAM, t["unix"]),
    "an abstract socket": lambda t: connect(socket.AF_UNIX, socket.SOCK_STREAM, t["abstract"]),
    "core.sock": lambda t: connect(socket.AF_UNIX, socket.SOCK_STREAM, t["home"] + "/core.sock"),
    "text.sock": lambda t: connect(socket.AF_UNIX, socket.SOCK_STREAM, t["home"] + "/text.sock"),
    "index.sock": lambda t: connect(socket.AF_UNIX, socket.SOCK_STREAM, t["home"] + "/index.sock"),
    "bind a name": lambda t: bound(socket.AF_UNIX, NAME),
    "bind an abstract name": lambda t: bound(socket.AF_UNIX, "\0aios-probe"),
    "datagrams": lambda t: datagrams(socket.SOCK_DGRAM),
    "raw datagrams": lambda t: datagrams(socket.SOCK_RAW),
    "listen": heard_anywhere,
}  # fmt: skip
