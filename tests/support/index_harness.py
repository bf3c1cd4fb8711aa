"""The index as a process, from the kernel's side of the socket."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq
from index_documents import ask, put

from aios.kernel.index.protocol import (
    Command,
    IndexUnusable,
    Position,
    ResetIndex,
    SearchResults,
    decode_report,
    encode,
)

PATIENCE_MS = 60_000
Told = TypeVar("Told", Position, SearchResults, IndexUnusable)


class FakeKernel:
    """The kernel as the index sees it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.context: zmq.Context[Any] = zmq.Context()
        self.route = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.epoch = 0
        self.embedder: str | Path = ""
        self.bind()

    def bind(self) -> None:
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.set_hwm(0)
        self.socket.bind(f"ipc://{self.home}/index.sock")

    def start(self, **options: Any) -> None:
        """Start an index, and wait until it is connected."""
        config = {"home": str(self.home), "folder": str(self.home / "index")}
        config["embedder"] = str(self.embedder)
        command = [sys.executable, "-m", "aios.kernel.index", msgspec.json.encode(config).decode()]
        with (self.home / "index.log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, **options)
        self.here()

    def here(self) -> None:
        route, data = self.receive()
        assert data == b""
        self.route = route

    def receive(self) -> list[bytes]:
        assert self.socket.poll(PATIENCE_MS), (self.home / "index.log").read_text()
        return self.socket.recv_multipart()

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.kill()
        self.socket.close()
        self.context.term()

    def send(self, *commands: Command) -> None:
        for command in commands:
            self.socket.send_multipart([self.route, encode(command)])

    def hear(self, kind: type[Told]) -> Told:
        """Return the next report of a kind; Positions before it are skipped."""
        while True:
            report = decode_report(self.receive()[1])
            if isinstance(report, kind):
                return report
            assert isinstance(report, Position)

    def reset(self, store: str = "store", drop: bool = False) -> Position:
        self.epoch += 1
        self.send(ResetIndex(self.epoch, store, drop))
        while (position := self.hear(Position)).epoch != self.epoch:
            pass
        return position

    def until(self, seq: int) -> Position:
        """Wait for the Position with this `seq`; they never go back."""
        last = -1
        while (position := self.hear(Position)).seq < seq:
            assert last < position.seq
            last = position.seq
        return position

    def put(self, *seqs: int, text: str = "", **fields: Any) -> None:
        for seq in seqs:
            words = f"word{seq} " + text
            self.send(put(seq, f"p{seq}", words, **{"epoch": self.epoch} | fields))

    def paths(self, query: str) -> set[str]:
        self.send(ask(query, "words", count=1000))
        return {hit.path for hit in self.hear(SearchResults).hits}


@contextlib.contextmanager
def with_index() -> Iterator[FakeKernel]:
    """A kernel whose index was just started."""
    with tempfile.TemporaryDirectory(prefix="aios-") as home:
        kernel = FakeKernel(Path(home))
        with contextlib.closing(kernel):
            kernel.start()
            yield kernel
