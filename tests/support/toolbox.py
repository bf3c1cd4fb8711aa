"""Tools that behave, and tools that do not, for the tests of the tool manager."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Literal

from aios.agents.tools import Running, tool

POISON: list[int] = []


@tool(name="lab.add")
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@tool(name="lab.fail")
def fail(text: str) -> str:
    """Raise."""
    raise ValueError(text)


@tool(name="lab.leave")
def leave(code: int) -> None:
    """Ask Python to end."""
    sys.exit(code)


@tool(name="lab.crash")
def crash() -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


@tool(name="lab.hang", timeout=0.5)
def hang() -> None:
    """Never end, and hear no signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    POISON.append(1)
    while True:
        time.sleep(60)


@tool(name="lab.poisoned")
def poisoned() -> int:
    """How often a hang has left something here."""
    return len(POISON)


@tool(name="lab.wait_for", timeout=20)
def wait_for(path: str) -> int:
    """Say who it is, and wait until a file is there."""
    Path(path + f".{os.getpid()}").touch()
    while not Path(path).exists():
        time.sleep(0.01)
    return os.getpid()


@tool(name="lab.alone", exclusive="lab", timeout=20)
def alone(path: str) -> str:
    """Fails where another runs at the same time."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL)
    time.sleep(0.05)
    os.close(fd)
    Path(path).unlink()
    return "alone"


@tool(name="lab.two", limit=2, timeout=20)
def two(folder: str) -> int:
    """How many of it run."""
    own = Path(folder) / str(os.getpid())
    own.touch()
    time.sleep(0.05)
    running = len(list(Path(folder).iterdir()))
    own.unlink()
    return running


@tool(name="lab.count", timeout=60)
def count(to: int, job: Running) -> int:
    """Say how far it is."""
    for number in range(to):
        job.progress(number, to, f"at {number}")
    return to


@tool(name="lab.long")
def long(size: int) -> str:
    """A long text."""
    return "x" * size


@tool(name="lab.chatter")
def chatter(megabytes: int, where: Literal["out", "err", "log"] = "out") -> str:
    """Print a lot; to the log without Python's help."""
    for _ in range(megabytes):
        if where == "log":
            os.write(1, b"x" * (1 << 20))
        else:
            print("x" * (1 << 20), file=sys.stdout if where == "out" else sys.stderr)
    return "said it"


@tool(name="lab.change", effect=True, timeout=20)
def change(path: str, then: str = "") -> str:
    """Append a line to a file; then wait for another."""
    with Path(path).open("a") as file:
        file.write("once\n")
    while then and not Path(then).exists():
        time.sleep(0.01)
    return "changed"


@tool(name="lab.odd")
def odd() -> Any:
    """Return what cannot be sent."""
    return object()


@tool(name="lab.sleep", timeout=60)
def sleep() -> None:
    """Say so, and sleep."""
    print("asleep", flush=True)
    time.sleep(600)


@tool(name="lab.ask")
def ask(call: str, args: dict[str, Any], job: Running) -> Any:
    """Make a system call of its own."""
    return job.aios.start(call, **args).wait()


@tool(name="lab.half")
def half() -> None:
    """Raise with half a character, as names of files can have it."""
    raise OSError("\ud800" * 20_000)


@tool(name="lab.tell")
def tell(job: Running) -> None:
    """Say something, and never end."""
    job.progress(0, 1, "read me")
    time.sleep(600)
