"""A kernel in this process, whose loop is turned by hand; and how many steps one turn takes.

A step is an instruction of Python's; what C does in one (a sort, a search, a copy) is seen by the
processor's time alone.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from aios.kernel.boot import Kernel
from aios.kernel.config import load
from aios.kernel.entry.call import Session
from aios.kernel.init.protocol import Takeover, encode
from aios.kernel.process import Process
from aios.syscalls.proc import Limits
from aios.syscalls.rules import Manifest
from aios.syscalls.wire import ABI_VERSION, DONE, PIECE

PATIENCE_S = 30.0
ALL = Manifest(allow=["*"])


class TooMuch(BaseException):
    """A turn took more steps than it may; raised in its midst."""


class Turns:
    """A kernel without core, index and init: what it sends them goes nowhere."""

    def __init__(self, home: Path, **settings: Any) -> None:
        for folder in (home / "log", home / "run", home / "agents"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.init, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.init.send(encode(Takeover("a system", {}, [], [], False)))
        self.kernel = Kernel(load(home, settings), theirs.detach())
        self.loop = self.kernel.loop
        self.replies: dict[bytes, list[tuple[int, int, Any]]] = {}
        self.loop.send_now = self._take  # type: ignore[method-assign]
        self.kernel.outbox.send = self._take
        self.kernel.greeter.init_pid = -1
        self.kernel.greeter.is_here = lambda _: True
        self.routes = itertools.count(1)

    def _take(self, route: bytes, data: bytes) -> None:
        self.replies.setdefault(route, []).append(
            tuple(msgpack.unpackb(data, strict_map_key=False, use_list=True)[:3])
        )

    def turn(self, wait: float = 0.0) -> None:
        """Everything that is there to be done now, and what goes out."""
        self.loop.own.wait(wait)
        self.loop._run_timers()
        self.loop.lost.clear()
        self.loop._end_turn()
        with contextlib.suppress(BlockingIOError):
            self.init.setblocking(False)
            while self.init.recv(1 << 20):
                pass

    def settle(self) -> None:
        """Turn until all that was to be written is on disk, and whoever waited for it knows."""
        batch = self.kernel.memory.batch
        while batch.backlog or batch.waiting or batch.batches:
            self.turn(0.01)
        last = self.kernel.store.write(lambda _: None)
        while not last.is_over:
            self.turn(0.01)

    def person(self) -> Caller:
        caller = Caller(self, next(self.routes).to_bytes(8, "big"))
        caller.done("hello", version=ABI_VERSION)
        return caller

    def agent(self, name: str, manifest: Manifest = ALL, parent: int = 0) -> Caller:
        """One that runs, though no process of Linux does."""
        free = Limits(
            tokens=None, mem_bytes=None, contexts=None, queue=None, children=None, wall=None
        )
        table = self.kernel.table
        process = table.add("agent", name, parent, 0, free, time.monotonic())
        process.manifest = manifest
        table.bind(process, -process.pid)
        process.move("running")
        caller = Caller(self, next(self.routes).to_bytes(8, "big"), process)
        self.kernel.sessions.bind(Session(caller.route, caller.os_pid), process)
        return caller

    def close(self) -> None:
        self.init.close()
        self.loop.own.close()
        self.loop.peers.close()


class Caller:
    def __init__(self, turns: Turns, route: bytes, process: Process | None = None) -> None:
        self.turns, self.route, self.process = turns, route, process
        self.os_pid = os.getpid() if process is None else process.os_pid
        self.ids = itertools.count(1)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, call: str, args: Any, *, heard: bool = True) -> int:
        """The call as a turn gets it; its id."""
        call_id = next(self.ids)
        data = msgspec.msgpack.encode((call_id, call, args, call_id - 1 if heard else 0))
        self.turns.kernel.trap.receive(self.route, self.os_pid, [data])
        return call_id

    def final(self, call_id: int) -> tuple[int, Any] | None:
        """Return the replies among all that has been sent so far, and forget it."""
        found = self.turns.replies.pop(self.route, [])
        ends = [(kind, body) for other, kind, body in found if other == call_id and kind != PIECE]
        return ends[0] if ends else None

    def wait(self, call_id: int) -> tuple[int, Any]:
        limit = time.monotonic() + PATIENCE_S
        while (end := self.final(call_id)) is None:
            assert time.monotonic() < limit, "no reply"
            self.turns.turn(0.01)
        return end

    def done(self, call: str, /, **args: Any) -> Any:
        kind, body = self.wait(self.send(call, args))
        assert kind == DONE, (call, body)
        return body


@contextlib.contextmanager
def counted(most: int) -> Iterator[Callable[[], int]]:
    """Steps that this thread takes meanwhile. Raises TooMuch at `most`. Garbage of other tests,
    which may run code when it is collected, stays until then."""
    steps = 0

    def each(frame: Any, event: str, _arg: object) -> Any:
        nonlocal steps
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            steps += 1
            if steps > most:
                sys.settrace(None)
                raise TooMuch
        return each

    before = sys.gettrace()
    gc.disable()
    sys.settrace(each)
    try:
        yield lambda: steps
    finally:
        sys.settrace(before)
        gc.enable()
