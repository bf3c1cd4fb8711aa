"""The agent of the attacks bench: it sends one kind of frames without end, and reads nothing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aios.agents import Agent, AiosError
from aios.bench.raw import call, dial, hello
from aios.kernel.entry.zmtp import COMMAND, LONG, MORE, encode_frame
from aios.syscalls.table import TABLE

BIG_TEXT = "x" * 60_000
PROGRESS_INTERVAL = 100  # frames
MAX_GENERATIONS = 64  # at once
MAX_CONNECTIONS = 256  # kept open
NOISE = random.Random(1)
REFUSED = [name for name in TABLE if name != "proc.exit"]

Sends = Callable[[int, int], bytes]  # number of the call, the agent's pid


def big_arguments(number: int, pid: int) -> bytes:
    name, args = (
        ("mem.put", {"items": {f"k{number % 64}": BIG_TEXT}}),
        ("msg.send", {"to": pid, "body": BIG_TEXT}),
        ("llm.generate", {"text": BIG_TEXT}),
        ("sto.put", {"path": f"o{number % 64}", "data": BIG_TEXT.encode()}),
    )[number % 4]
    return call(number, name, number - 1, **args)


def big_replies(number: int, _pid: int) -> bytes:
    if number == 2:
        return call(number, "mem.put", items={"big": BIG_TEXT})
    return call(number, "mem.get", number - 1, keys=["big"])


def unheard(number: int, pid: int) -> bytes:
    if number % 2:
        return call(number, "msg.recv")
    return call(number, "msg.send", to=pid, body=BIG_TEXT)


def unknown(number: int, _pid: int) -> bytes:
    return call(number, f"no.{number}", number - 1)


def broken_calls(number: int, pid: int) -> bytes:
    whole = big_arguments(number, pid)[9:]
    return encode_frame(
        NOISE.randbytes(number % 300) if number % 2 else whole[: number % len(whole)]
    )


def cancels(number: int, _pid: int) -> bytes:
    """Cancel calls that wait in the kernel, and calls that wait for the core."""
    if number % 2:
        return call(number, "call.cancel", number - 2, call=number - 1)
    if number % 4:
        return call(number, "llm.tokenize", number - 1, text=BIG_TEXT)
    return call(number, "msg.recv", number - 1, timeout=86400.0)


def events(number: int, _pid: int) -> bytes:
    """Open as many followers as the agent may have, then make what they follow happen."""
    if number < 20:
        return call(number, ("kernel.events", "sto.watch")[number % 2])
    name = ("sto.put", "llm.generate")[number % 2]
    args = {"path": "o", "data": b"x"} if name == "sto.put" else {"text": "x", "max_tokens": 1}
    return call(number, name, 0, **args)


def broken_frame(number: int) -> bytes:
    return (
        encode_frame(b"\x04PING\0\0" + bytes(16), COMMAND) * 3000,
        encode_frame(b"\x04PING\0\0" + bytes(240), COMMAND),
        encode_frame(b"", MORE) * 30_000,
        bytes((LONG,)) + (60_000).to_bytes(8, "big") + bytes(59_999),
        bytes((LONG,)) + (1 << 40).to_bytes(8, "big"),
        NOISE.randbytes(4096),
    )[number % 6]


def hellos(number: int) -> bytes:
    return hello(token=bytes(32)) + hello(name=BIG_TEXT[: number % 60_000]) + hello()


KNOWN: dict[str, Sends] = {
    "big_arguments": big_arguments, "big_replies": big_replies, "unheard": unheard,
    "unknown": unknown, "broken_calls": broken_calls, "cancels": cancels, "events": events,
}  # fmt: skip
OTHERS = ("hellos", "broken_frames", "prints")


class Flood(Agent):
    name = "flood"

    def run(self, task: Any) -> Any:
        """Send frames of a `kind` for some `seconds`, as `task` says. The log ends with their
        number."""
        kind, limit = task["kind"], time.monotonic() + task["seconds"]
        if kind == "who":
            return self.aios.whoami().pid
        if kind == "deed":
            return self.aios.mem_put({"deed": "done"})
        step, number = self.step(kind), 0
        with contextlib.suppress(OSError):  # it is cut off
            while time.monotonic() < limit:
                step(number)
                number += 1
                if number % PROGRESS_INTERVAL == 0:
                    print(number)
        print(number, flush=True)
        os._exit(0)  # there may be no connection left to say it on

    def step(self, kind: str) -> Callable[[int], object]:
        held: deque[Any] = deque()
        if kind in KNOWN:
            end, pid = self.known(), self.aios.pid
            return lambda number: end.sendall(KNOWN[kind](number + 2, pid))
        return {
            "refused": self.refused,
            "hellos": lambda number: self.strange(held, hellos(number)),
            "broken_frames": lambda number: self.strange(held, broken_frame(number)),
            "prints": lambda _: print(BIG_TEXT),
            "one_token": lambda number: self.generate(held, str(number)),
        }[kind]  # fmt: skip

    def known(self) -> socket.socket:
        """Open a connection that takes the place of this agent's own."""
        me = self.aios.welcome
        end = dial(self.aios.connection.home)
        end.sendall(hello(back={"pid": me.pid, "secret": me.secret}))
        return end

    def strange(self, held: deque[socket.socket], data: bytes) -> None:
        """Send data on a new connection, one of many that stay open."""
        with contextlib.suppress(OSError):
            held.append(dial(self.aios.connection.home))
            held[-1].sendall(data)
        if len(held) > MAX_CONNECTIONS:
            held.popleft().close()

    def generate(self, running: deque[Any], text: str) -> None:
        """Start a call for one token, beside many others."""
        if len(running) == MAX_GENERATIONS:
            running.popleft().result()
        running.append(self.aios.generate(text, raw=True, max_tokens=1))

    def refused(self, number: int) -> None:
        """Do all that is left to an agent that may do nothing: make each call there is, some
        that do not exist, and what Linux refuses. Read the answers, or the kernel would end the
        agent."""
        names = (*REFUSED, f"no.{number}")
        args = {"call": number + 1} if number % 3 else {}
        with contextlib.suppress(AiosError):
            self.aios.start(names[number % len(names)], **args).wait()
        if number % 100 == 0:
            with contextlib.suppress(OSError):
                Path(f"/root/{number}").read_bytes()
