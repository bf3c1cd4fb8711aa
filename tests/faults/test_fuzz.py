"""Messages of all sorts, valid and not, from several connections: the kernel answers throughout."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Boot, eventually
from raw import Raw
from samples import JUNK, SAMPLES, pack

from aios.agents import connect
from aios.syscalls.errors import BY_CODE, NotFound, ProcessGone
from aios.syscalls.table import TABLE
from aios.syscalls.wire import FAILED

CONNECTIONS, LIFE = 4, 60  # at once; messages sent over each
NAMES = sorted(SAMPLES.keys() - {"kernel.stop", "proc.exit"}) * 10
NAMES += ["proc.exit"] + ["llm.generate", "proc.spawn"] * 20


class Fuzzer:
    """A source of messages; `program` is an agent that may be started for real."""

    def __init__(self, seed: int, program: str) -> None:
        self.rng = random.Random(seed)
        self.program = program
        self.mutations = [
            self.valid, self.valid, self.field, self.field, self.numbers, self.numbers,
            self.missing, self.envelope, self.flipped, self.cut, self.noise, self.large,
        ]  # fmt: skip

    def message(self) -> list[bytes]:
        """The frames of one message, which is never a valid kernel.stop."""
        name = self.rng.choice(NAMES)
        args = dict(self.rng.choice(SAMPLES[name]))
        data = self.rng.choice(self.mutations)(name, args)
        return [data] * (2 if self.rng.random() < 0.02 else 1)

    def valid(self, name: str, args: dict[str, Any]) -> bytes:
        if name == "proc.spawn" and self.rng.random() < 0.3:
            args["program"] = self.program
        return pack(self.rng.randrange(1, 200), name, args)

    def field(self, name: str, args: dict[str, Any]) -> bytes:
        key = self.rng.choice([*args, "pid", "ctx", "unknown"])
        return self.valid(name, args | {key: self.rng.choice(JUNK)})

    def numbers(self, name: str, args: dict[str, Any]) -> bytes:
        """Pids, contexts and calls that there may well be."""
        for key in ("pid", "ctx", "call", "to", "sender"):
            if key in args:
                args[key] = self.rng.randrange(60)
        return self.valid(name, args)

    def missing(self, name: str, args: dict[str, Any]) -> bytes:
        if args:
            del args[self.rng.choice(list(args))]
        return self.valid(name, args)

    def envelope(self, name: str, args: dict[str, Any]) -> bytes:
        parts: list[Any] = [1, name, args]
        parts[self.rng.randrange(3)] = self.rng.choice(JUNK)
        return pack(*parts)

    def flipped(self, name: str, args: dict[str, Any]) -> bytes:
        data = bytearray(self.valid(name, args))
        for _ in range(self.rng.randrange(1, 4)):
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        return bytes(data)

    def cut(self, name: str, args: dict[str, Any]) -> bytes:
        data = self.valid(name, args)
        return data[: self.rng.randrange(len(data))] + data[: self.rng.randrange(3)]

    def noise(self, name: str, args: dict[str, Any]) -> bytes:
        return self.rng.randbytes(self.rng.randrange(200))

    def large(self, name: str, args: dict[str, Any]) -> bytes:
        text = "a " * self.rng.choice([5_000, 40_000, 200_000])
        return self.valid(name, args | {"text": text})


@contextmanager
def watched(home: Path) -> Iterator[None]:
    """`aios status` from another connection, all the time; each must be answered."""
    done = threading.Event()
    answers: list[str] = []
    failed: list[BaseException] = []

    def watch() -> None:
        try:
            with connect(home, "watcher") as aios:
                while not done.is_set():
                    answers.append(aios.start("kernel.status").wait(30)["boot"])
        except BaseException as error:  # noqa: BLE001 (told to the test below)
            failed.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not failed
    assert len(answers) > 10
    assert len(set(answers)) == 1  # one and the same kernel


def listen(raw: Raw) -> None:
    for _, kind, body in raw.waiting():
        if kind == FAILED:
            assert body["code"] in BY_CODE.keys() - {"error", "internal"}, body


@pytest.mark.faults
def test_fuzzed_messages(boot: Boot, program: Callable[[str], str], full: bool) -> None:
    system = boot(slots=4, ctx=256, grace=0.2)
    fuzzer = Fuzzer(20_000, program("aios.generate(str(task), max_tokens=3)\naios.recv()"))
    with connect(system.home) as aios:
        kernel = psutil.Process(aios.status().os_pid)
        before = kernel.num_fds(), kernel.memory_info().rss
        with watched(system.home):
            for _ in range((10_000 if full else 960) // (CONNECTIONS * LIFE) + 1):
                raws = [Raw(system.home, first=1000) for _ in range(CONNECTIONS)]
                for _ in range(LIFE):
                    for raw in raws:
                        raw.send(*fuzzer.message())
                        listen(raw)
                fences = [raw.start("llm.generate", text="a", max_tokens=2) for raw in raws]
                for raw, fence in zip(raws, fences, strict=True):
                    with raw:  # leaves by proc.exit
                        raw.final(fence)
        for row in aios.ps():
            with suppress(NotFound, ProcessGone):
                aios.kill(row.pid, "KILL")
        eventually(lambda: not aios.ps())
        eventually(lambda: aios.status().contexts == 0)
        assert aios.check() == []
        stats = aios.stats()
        assert "internal" not in stats.errors
        assert stats.calls.keys() == TABLE.keys() - {"kernel.stop"}
        assert stats.errors["call.out_of_order"] < sum(stats.calls.values())  # most got through
        assert stats.generations > 20
        assert aios.status().core_restarts == 0
        assert aios.generate("Hi", max_tokens=2).result().tokens
        eventually(lambda: kernel.num_fds() <= before[0] + 2)
        assert kernel.memory_info().rss - before[1] < 64 << 20
