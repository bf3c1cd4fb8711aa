"""The process of the index: one socket to the kernel, and the file.

    python -m aios.kernel.index CONFIG    (an IndexConfig as JSON)

It outlives its kernel like an LLM core: the socket connects to the next one and announces itself
(ZMQ_PROBE_ROUTER). Searches go before changes, of which a batch is one transaction; they are also
answered between two passages that the model reads. When the file is damaged, the process goes on
with an empty one and a new connection. Without a model it searches by words, and changes wait.
"""

from __future__ import annotations

import sqlite3
import sys
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import zmq

from aios.kernel.config import Prefixes
from aios.kernel.lib.log_stream import become_log
from aios.syscalls.errors import IndexFailed, ModelError

from .database import Damaged
from .embedder import Embedder, Mended, Missing, open_embedder
from .index import Index
from .protocol import (
    Change,
    Command,
    Failed,
    Found,
    Position,
    Put,
    Remove,
    Reset,
    Search,
    decode_command,
    encode,
)

BATCH = 1 << 18  # characters of text in a transaction; a search waits for one at most
CHANGES = 256  # likewise
BURST = 10_000  # messages that are taken, for the searches among them, before the next batch
RETRY = 1000  # milliseconds until a batch is tried again that could not be written


class IndexConfig(msgspec.Struct, frozen=True):
    home: str
    folder: str  # empty: nothing is to be on disk
    embedder: str = ""
    embedder_prefixes: Prefixes = Prefixes()

    @property
    def path(self) -> Path | None:
        return Path(self.folder) if self.folder else None


class Overtaken(Exception):
    """By a Reset: what is being indexed is not wanted any more."""


class Service:
    """What is to be indexed, and what is sent of it."""

    def __init__(self, link: zmq.Socket[bytes], index: Index) -> None:
        self.link, self.index = link, index
        self.epoch = 0
        self.pending: deque[Change] = deque()
        self.held: deque[Command] = deque()  # what came while a batch was worked on
        self.trouble = index.embedder.trouble if isinstance(index.embedder, Missing) else ""

    def serve(self) -> None:
        """Until the file turns out to be damaged, or a model that was missing is there."""
        while True:
            while self.held:
                self.take(self.held.popleft())
            wait = (RETRY if self.trouble else 0) if self.pending else None
            if self.link.poll(wait):
                for _ in range(BURST):
                    self.take(decode_command(self.link.recv()))
                    if not self.link.poll(0):
                        break
            if self.pending:
                self.apply()

    def take(self, command: Command) -> None:
        match command:
            case Search() as search:
                self.link.send(encode(self.found(search)))
            case Reset() as reset:
                self.epoch = reset.epoch
                self.pending.clear()
                self.index.reset(reset.store, reset.drop)
                self.report()
            case Put() | Remove() as change if change.epoch == self.epoch:
                self.pending.append(change)
            case _:
                pass  # it was sent before a Reset that overtook it

    def found(self, search: Search) -> Found:
        try:
            return Found(search.req, self.index.search(search))
        except sqlite3.OperationalError as error:
            why = IndexFailed(f"the index cannot be read: {error}")
            return Found(search.req, [], why.to_wire())
        except ModelError as error:
            return Found(search.req, [], error.to_wire())

    def apply(self) -> None:
        batch, before = self.batch(), self.trouble
        try:
            self.index.apply(batch, self.between)
        except Overtaken:
            return
        except (sqlite3.OperationalError, ModelError) as error:
            self.trouble = error.message if isinstance(error, ModelError) else str(error)
        else:
            self.trouble = ""
            for _ in batch:
                self.pending.popleft()
        if self.trouble != before:
            print("cannot index:", self.trouble or "it works again", file=sys.stderr, flush=True)
        if not self.trouble or self.trouble != before:
            self.report()

    def between(self) -> None:
        """Answer a search that has come; a Reset ends the batch, the rest is for later."""
        while self.link.poll(0):
            command = decode_command(self.link.recv())
            if isinstance(command, Search):
                self.take(command)
                return
            self.held.append(command)
            if isinstance(command, Reset):
                raise Overtaken

    def batch(self) -> list[Change]:
        chosen: list[Change] = []
        room = BATCH
        for change in self.pending:
            room -= len(change.text) if isinstance(change, Put) else 0
            if chosen and (room < 0 or len(chosen) == CHANGES):
                break
            chosen.append(change)
        return chosen

    def report(self) -> None:
        index = self.index
        self.link.send(
            encode(
                Position(
                    self.epoch, index.position, index.documents, index.passages,
                    index.began_again, self.trouble,
                )
            )
        )  # fmt: skip


def main() -> int:
    become_log()
    config = msgspec.json.decode(sys.argv[1], type=IndexConfig)
    context: zmq.Context[Any] = zmq.Context()
    try:
        index = Index(config.path, open_or_miss(config))
    except (OSError, sqlite3.Error) as error:
        why = IndexFailed(f"the index cannot be opened: {error}")
        connect(context, config).send(encode(Failed(why.to_wire())))
        context.term()  # lingers until the kernel has it
        return 1
    while True:
        link = connect(context, config)
        try:
            Service(link, index).serve()
        except Damaged as damaged:
            index.begin_again(str(damaged))
        except Mended as mended:
            index.close()
            index = Index(config.path, mended.embedder)
        link.close(linger=0)  # with all that the kernel sent before it knew


def open_or_miss(config: IndexConfig) -> Embedder:
    def opened() -> Embedder:
        return open_embedder(config.embedder, config.embedder_prefixes)

    try:
        return opened()
    except ModelError as error:
        return Missing(opened, error)


def connect(context: zmq.Context[Any], config: IndexConfig) -> zmq.Socket[bytes]:
    link: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    link.setsockopt(zmq.PROBE_ROUTER, 1)
    link.setsockopt(zmq.IMMEDIATE, 1)
    link.setsockopt(zmq.RECONNECT_IVL, 10)  # ms
    link.set_hwm(0)
    link.connect(f"ipc://{config.home}/index.sock")
    return link


if __name__ == "__main__":
    sys.exit(main())
