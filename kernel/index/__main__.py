"""The process of the index: one socket to the kernel, and the file.

    python -m aios.kernel.index CONFIG    (an IndexConfig as JSON)

The process outlives its kernel like an LLM core: the socket connects to the next kernel and
announces itself (ZMQ_PROBE_ROUTER). Changes are applied in batches, each one transaction; searches
go before them, and are answered even between two passages that the model reads. When the file is
damaged, the process goes on with an empty one and a new connection. While its model cannot be
loaded it searches by words, and changes wait.
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

from .database import IndexDamaged
from .embedder import Embedder, EmbedderLoaded, MissingEmbedder, open_embedder
from .index import Index
from .protocol import (
    Change,
    Command,
    IndexUnusable,
    Position,
    PutDocument,
    RemoveDocument,
    ResetIndex,
    Search,
    SearchResults,
    decode_command,
    encode,
)

BATCH_CHARS = 1 << 18  # of text in a transaction; a search waits for one at most
BATCH_CHANGES = 256  # in a transaction
BURST_MESSAGES = 10_000  # received, for the searches among them, before the next batch
RETRY_MS = 1000  # until a batch that could not be written is tried again


class IndexConfig(msgspec.Struct, frozen=True):
    home: str
    folder: str  # empty: keep nothing on disk
    embedder: str = ""
    embedder_prefixes: Prefixes = Prefixes()

    @property
    def path(self) -> Path | None:
        return Path(self.folder) if self.folder else None


class Superseded(Exception):
    """A Reset has come: the batch being indexed is no longer wanted."""


class IndexServer:
    """Serves one kernel: applies its changes in batches, and answers its searches."""

    def __init__(self, link: zmq.Socket[bytes], index: Index) -> None:
        self.link, self.index = link, index
        self.epoch = 0
        self.pending: deque[Change] = deque()
        self.deferred: deque[Command] = deque()  # received while a batch was applied
        self.trouble = index.embedder.trouble if isinstance(index.embedder, MissingEmbedder) else ""

    def serve(self) -> None:
        """Serve until IndexDamaged, or until a missing model is there: EmbedderLoaded."""
        while True:
            while self.deferred:
                self.take(self.deferred.popleft())
            wait = (RETRY_MS if self.trouble else 0) if self.pending else None
            if self.link.poll(wait):
                for _ in range(BURST_MESSAGES):
                    self.take(decode_command(self.link.recv()))
                    if not self.link.poll(0):
                        break
            if self.pending:
                self.apply()

    def take(self, command: Command) -> None:
        match command:
            case Search() as search:
                self.link.send(encode(self.found(search)))
            case ResetIndex() as reset:
                self.epoch = reset.epoch
                self.pending.clear()
                self.index.reset(reset.store, reset.drop)
                self.report()
            case PutDocument() | RemoveDocument() as change if change.epoch == self.epoch:
                self.pending.append(change)
            case _:
                pass  # sent before a Reset that overtook it

    def found(self, search: Search) -> SearchResults:
        try:
            return SearchResults(search.req, self.index.search(search))
        except sqlite3.OperationalError as error:
            why = IndexFailed(f"the index cannot be read: {error}")
            return SearchResults(search.req, [], why.to_wire())
        except ModelError as error:
            return SearchResults(search.req, [], error.to_wire())

    def apply(self) -> None:
        batch, before = self.batch(), self.trouble
        try:
            self.index.apply(batch, self.between)
        except Superseded:
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
        """Answer a search that has come; defer other commands. A Reset aborts the batch."""
        while self.link.poll(0):
            command = decode_command(self.link.recv())
            if isinstance(command, Search):
                self.take(command)
                return
            self.deferred.append(command)
            if isinstance(command, ResetIndex):
                raise Superseded

    def batch(self) -> list[Change]:
        chosen: list[Change] = []
        left = BATCH_CHARS
        for change in self.pending:
            left -= len(change.text) if isinstance(change, PutDocument) else 0
            if chosen and (left < 0 or len(chosen) == BATCH_CHANGES):
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
        index = Index(config.path, open_embedder_or_retry(config))
    except (OSError, sqlite3.Error) as error:
        why = IndexFailed(f"the index cannot be opened: {error}")
        connect(context, config).send(encode(IndexUnusable(why.to_wire())))
        context.term()  # lingers until the kernel has it
        return 1
    while True:
        link = connect(context, config)
        try:
            IndexServer(link, index).serve()
        except IndexDamaged as damaged:
            index.begin_again(str(damaged))
        except EmbedderLoaded as loaded:
            index.close()
            index = Index(config.path, loaded.embedder)
        link.close(linger=0)  # and with it all that the kernel sent before it knew


def open_embedder_or_retry(config: IndexConfig) -> Embedder:
    def opened() -> Embedder:
        return open_embedder(config.embedder, config.embedder_prefixes)

    try:
        return opened()
    except ModelError as error:
        return MissingEmbedder(opened, error)


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
