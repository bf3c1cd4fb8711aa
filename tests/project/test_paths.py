"""The two paths on ARCHITECTURE.md are those that a system call and a token take.

A kernel, and a core on the tiny model, run in threads of this process, and agents speak to them
over the kernel's socket. Recorded are the files of the project whose code runs in the loops of the
two from a call to its reply, and from a step of the core to the piece that its caller gets: of all
calls and tokens but the first, which find everything open.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
import zmq
from conftest import eventually
from models import tiny_model
from places import PROJECT
from turns import ALL, Turns

from aios.agents.sdk.connection import Connection
from aios.kernel.core.__main__ import serve
from aios.kernel.core.batcher import Batcher
from aios.kernel.core.llama import LlamaEngine
from aios.kernel.core.protocol import decode_question, encode
from aios.kernel.core.text import answer
from aios.kernel.processes.pending_spawn import PendingSpawn
from aios.syscalls.kernel import ModelInfo
from aios.syscalls.proc import Limits, Spawn

WINDOW = 8192  # more than the core draws while it is watched
CALLS, TOKENS = 20, 200  # what happens now and then, as a row that is written anew, is among them
Ran = dict[str, set[str]]  # functions by file


class Recorder:
    """The functions of the project that run in its threads while it is on, by their files."""

    def __init__(self) -> None:
        self.ran: Ran | None = None
        self.threads: list[threading.Thread] = []

    def start(self, run: Callable[[], None]) -> None:
        """Run it in a thread that is recorded."""

        def recorded() -> None:
            sys.setprofile(self._each)
            run()

        self.threads.append(threading.Thread(target=recorded, daemon=True))
        self.threads[-1].start()

    def _each(self, frame: FrameType, _event: str, _arg: object) -> None:
        ran = self.ran
        if ran is not None:
            ran[frame.f_code.co_filename].add(frame.f_code.co_qualname)

    @contextlib.contextmanager
    def on(self) -> Iterator[Ran]:
        """Yield what is filled until its end: the files by their paths in the project."""
        self.ran = defaultdict(set)
        found: Ran = {}
        yield found
        ran, self.ran = self.ran, None
        for path, names in ran.items():
            file = os.path.relpath(path, PROJECT)
            if file.startswith(("kernel/", "syscalls/", "agents/")):
                found[file] = names


class System:
    """A kernel and a core in threads, and two agents that are connected."""

    def __init__(self, home: Path) -> None:
        self.home, self.recorder = home, Recorder()
        self.turns = Turns(home, ctx=WINDOW, slots=1, threads=1)
        self.kernel, self.loop = self.turns.kernel, self.turns.loop
        del vars(self.loop)["send_now"]  # replies leave by the socket
        self.kernel.outbox.send = self.loop.send_now
        self.kernel.greeter.init_pid = os.getppid()  # who has started the agents: this process
        self.kernel.core.service.adopt(os.getpid())
        path = tiny_model(home / "tiny.gguf")
        self.engine = LlamaEngine(path, slots=1, window=WINDOW, threads=1)
        self.batcher = Batcher(self.engine, 1, 1 << 28)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        tokens = [self._born("sender"), self._born("receiver")]
        self.recorder.start(self.loop.run)
        self.recorder.start(self._core)
        self.text = threading.Thread(target=self._text, daemon=True)
        self.text.start()
        self.sender, self.receiver = (Connection(home, token, None) for token in tokens)

    def _born(self, name: str) -> bytes:
        """An agent that may say hello with the token."""
        free = Limits(
            tokens=None, mem_bytes=None, contexts=None, queue=None, children=None, wall=None
        )
        process = self.kernel.table.add("agent", name, 0, 0, free, time.monotonic())
        process.manifest = ALL
        pending = PendingSpawn(process, secrets.token_bytes(32), Spawn(program=name), None)
        self.kernel.lifecycle.pending_spawns[process.pid] = pending
        return pending.token

    def _connected(self, name: str) -> zmq.Socket[bytes]:
        connected: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        connected.setsockopt(zmq.PROBE_ROUTER, 1)
        connected.setsockopt(zmq.LINGER, 0)
        connected.connect(f"ipc://{self.home}/{name}.sock")
        return connected

    def _core(self) -> None:
        engine = self.engine
        model = ModelInfo(
            path=str(engine.path), id=engine.model_id, description=engine.description(),
            params=engine.params, size=engine.size, vocab=engine.n_vocab, window=engine.window,
            certified=1, exact_cost=None, cache_bytes=engine.cache_bytes, cache=engine.cache,
            paged=True, engine="llama.cpp",
        )  # fmt: skip
        with self._connected("core") as work, contextlib.suppress(zmq.ContextTerminated):
            serve(work, self.batcher, model)

    def _text(self) -> None:
        with self._connected("text") as text, contextlib.suppress(zmq.ContextTerminated):
            while True:
                question = decode_question(text.recv())
                text.send(encode(answer(self.engine, question)))

    def send(self) -> None:
        args = {"to": self.receiver.welcome["pid"], "body": "good morning"}
        self.sender.start("msg.send", args).wait()

    def is_quiet(self) -> bool:
        """Tell whether nothing is done any more for the calls that have ended."""
        log = self.kernel.interactions
        return not log.jobs and not log.waiting

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.loop.post(partial(setattr, self.loop, "running", False))
        self.context.term()
        for thread in [*self.recorder.threads, self.text]:
            thread.join()
        self.engine.close()
        self.turns.close()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    running = System(tmp_path_factory.mktemp("paths"))
    yield running
    running.close()


def stops(section: str) -> dict[str, str]:
    """The files that the steps of a path on the page name, each with a function."""
    text = (PROJECT / "ARCHITECTURE.md").read_text()
    text = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    steps = " ".join(text[text.index("\n1. ") :].split())
    named = re.findall(r"`([\w/]+\.py)`(?: \(|, )`([\w.]+)`", steps)
    assert len(named) == steps.count(".py`"), "a file is named without a function"
    assert len(dict(named)) == len(named), "a file is named twice"
    return dict(named)


def is_entered(name: str, ran: set[str]) -> bool:
    return any(each == name or each.startswith(f"{name}.<locals>.") for each in ran)


def compare(ran: Ran, section: str) -> None:
    named = stops(section)
    assert sorted(named) == sorted(ran), f"{len(ran)} files: {named.keys() ^ ran.keys()}"
    for file, name in named.items():
        assert is_entered(name, ran[file]), (file, name)


def test_a_system_call_takes_the_path_that_the_page_shows(system: System) -> None:
    system.send()
    eventually(system.is_quiet)
    with system.recorder.on() as ran:
        for _ in range(CALLS):
            system.send()
        eventually(system.is_quiet)
    compare(ran, "Path of a system call")


def test_a_token_takes_the_path_that_the_page_shows(system: System) -> None:
    args = {"text": "Once", "max_tokens": WINDOW - 100, "ignore_eos": True}
    call = system.sender.start("llm.generate", args)
    pieces = iter(call)
    next(pieces)
    with system.recorder.on() as ran:
        drawn = system.batcher.counters().steps
        for _ in range(drawn + TOKENS):  # the last of these were drawn in here
            next(pieces)
    assert system.batcher.running, "it has ended meanwhile"
    system.sender.start("call.cancel", {"call": call.id}).wait()
    call.wait()
    compare(ran, "Path of a token")
