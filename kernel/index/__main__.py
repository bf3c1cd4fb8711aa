"""The process of the index: one socket to the kernel, and the file.

    python -m aios.kernel.index CONFIG    (an IndexConfig as JSON)

It outlives its kernel like an LLM core: the socket connects to the next one and announces itself
(ZMQ_PROBE_ROUTER). Searches go before changes, of which a batch is one transaction and one call of
the model. When the file is damaged, the process goes on with an empty one and a new connection.
"""

from __future__ import annotations

import sqlite3
import sys
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import zmq

from aios.syscalls.errors import AiosError, ModelError

from .database import Damaged
from .embedder import WordLlama
from .index import Index
from .protocol import (
    Change,
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


class Service:
    """What is to be indexed, and what is sent of it."""

    def __init__(self, link: zmq.Socket[bytes], index: Index) -> None:
        self.link, self.index = link, index
        self.epoch = 0
        self.pending: deque[Change] = deque()
        self.trouble = ""

    def serve(self) -> None:
        """Until the file turns out to be damaged."""
        while True:
            wait = (RETRY if self.trouble else 0) if self.pending else None
            if self.link.poll(wait):
                for _ in range(BURST):
                    self.take(self.link.recv())
                    if not self.link.poll(0):
                        break
            if self.pending:
                self.apply()

    def take(self, data: bytes) -> None:
        match decode_command(data):
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
            why = AiosError(f"the index cannot be read: {error}", "see log/index.log")
            return Found(search.req, [], why.to_wire())

    def apply(self) -> None:
        batch, before = self.batch(), self.trouble
        try:
            self.index.apply(batch)
        except sqlite3.OperationalError as error:
            self.trouble = str(error)
        else:
            self.trouble = ""
            for _ in batch:
                self.pending.popleft()
        if self.trouble != before:
            print("cannot write:", self.trouble or "it works again", file=sys.stderr, flush=True)
        if not self.trouble or self.trouble != before:
            self.report()

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
    config = msgspec.json.decode(sys.argv[1], type=IndexConfig)
    context: zmq.Context[Any] = zmq.Context()
    try:
        index = Index(Path(config.folder) if config.folder else None, WordLlama())
    except (ModelError, OSError, sqlite3.Error) as error:
        connect(context, config).send(encode(Failed(as_aios_error(error).to_wire())))
        context.term()  # lingers until the kernel has it
        return 1
    while True:
        link = connect(context, config)
        try:
            Service(link, index).serve()
        except Damaged as damaged:
            index.begin_again(str(damaged))
        link.close(linger=0)  # with all that the kernel sent before it knew


def connect(context: zmq.Context[Any], config: IndexConfig) -> zmq.Socket[bytes]:
    link: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    link.setsockopt(zmq.PROBE_ROUTER, 1)
    link.setsockopt(zmq.IMMEDIATE, 1)
    link.setsockopt(zmq.RECONNECT_IVL, 10)  # ms
    link.set_hwm(0)
    link.connect(f"ipc://{config.home}/index.sock")
    return link


def as_aios_error(error: Exception) -> AiosError:
    if isinstance(error, AiosError):
        return error
    return AiosError(f"the index cannot be opened: {error}", "see log/index.log in the AIOS home")


if __name__ == "__main__":
    sys.exit(main())
