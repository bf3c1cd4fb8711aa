"""Ways to be someone else to the kernel, and to make it hold too much."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import Any

from probes.base import Probe, Targets
from raw import Raw

from aios.syscalls.wire import FAILED


def hello(t: Targets, **args: Any) -> Any:
    with Raw(Path(t["home"]), hello=False) as raw:
        kind, body = raw.final(raw.start("hello", version=1, **args))
        if kind == FAILED:
            raise PermissionError(body["code"])
        return body


def without_hello(t: Targets) -> Any:
    with Raw(Path(t["home"]), hello=False, route=b"sibling") as raw:
        kind, body = raw.final(raw.start("proc.whoami"))
        if kind == FAILED:
            raise PermissionError(body["code"])
        return body


def the_shells_environment(_: Targets) -> bool:
    """Anywhere in this process's memory, which is a copy of init's."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    with Path("/proc/self/mem").open("rb") as memory:
        for span, rights, *_rest in maps:
            start, end = (int(at, 16) for at in span.split("-"))
            if rights.startswith("rw") and end - start < 1 << 28:
                memory.seek(start)
                if re.search(rb"hunter2[-]of", memory.read(end - start)):
                    return True
    raise PermissionError("it is not there")


IDENTITY: dict[str, Probe] = {
    "hello as a client": hello,
    "hello again": lambda t: t["aios"].start("hello", version=1).wait(),
    "hello with a token that was guessed": lambda t: hello(t, token=bytes(32)),
    "come back as a sibling": lambda t: hello(
        t, back={"pid": t["pid"], "secret": bytes.fromhex(t["word"])}),
    "a chosen route": without_hello,
    "kill a sibling": lambda t: t["aios"].kill(t["pid"], "KILL"),
    "a sibling's log": lambda t: t["aios"].log(t["pid"]),
    "a sibling's limits": lambda t: t["aios"].limits(t["pid"], {}),
    "the environment of the person's shell": the_shells_environment,
    "stop the system": lambda t: t["aios"].stop(),
}  # fmt: skip


def greeted(t: Targets) -> socket.socket:
    """A connection that speaks the protocol, by hand: libzmq would not send what never ends."""
    end = socket.socket(socket.AF_UNIX)
    end.connect(t["home"] + "/run/kernel.sock")
    end.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    end.sendall(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06DEALER")
    end.settimeout(10)
    return end


def endless(t: Targets) -> int:
    """Parts of a message whose last never comes."""
    part = b"\x03" + (1 << 16).to_bytes(8, "big") + bytes(1 << 16)
    sent = 0
    with greeted(t) as end, contextlib.suppress(ConnectionError):
        while sent < t["count"]:
            end.sendall(part)
            sent += 1
    return sent


def unread(t: Targets) -> int:
    """Calls whose replies are never read."""
    with greeted(t) as end:
        for _ in range(t["count"]):
            with contextlib.suppress(TimeoutError):
                end.sendall(b"\0\x01x" * 1000)
    return int(t["count"])


def crowd(t: Targets) -> int:
    """Connections, as many as it may have open, again and again."""
    made = 0
    while made < t["count"]:
        ends: list[socket.socket] = []
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):
                while made + len(ends) < t["count"]:
                    end = held.enter_context(socket.socket(socket.AF_UNIX))
                    end.connect(t["home"] + "/run/kernel.sock")
                    ends.append(end)
            assert ends[-1].recv(1)  # the kernel has accepted them all
        made += len(ends)
    return made


def long_frame(t: Targets) -> int:
    with greeted(t) as end:
        end.sendall(b"\x02" + (1 << 40).to_bytes(8, "big"))
        while end.recv(4096):
            pass
    return 0


FLOODS: dict[str, Probe] = {probe.__name__: probe for probe in (endless, unread, crowd, long_frame)}
