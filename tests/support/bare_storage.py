"""Storage without a kernel, and calls of it whose answers are kept."""

from __future__ import annotations

import queue
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aios.kernel.entry.call import Call, Session
from aios.kernel.process import Process, ProcessTable
from aios.kernel.storage.blobs import LmdbBlobs
from aios.kernel.storage.maintenance import Maintenance
from aios.kernel.storage.manager import Storage
from aios.kernel.storage.shares import Shares
from aios.kernel.store.store import Store
from aios.syscalls import sto
from aios.syscalls.errors import AiosError
from aios.syscalls.proc import Limits
from aios.syscalls.rules import Group
from aios.syscalls.table import TABLE

LIMIT = 10.0  # seconds
PERSON = ""
OWNERS = [PERSON, "/a", "/a/b", "/c"]
QUOTA = 3 * sto.CHUNK_BYTES


class Asked(Call):
    """A call of which the answer is kept."""

    def __init__(self, process: Process, call_id: int) -> None:
        session = Session(b"", 0, process)
        super().__init__(None, session, process, call_id, TABLE["sto.get"])  # type: ignore[arg-type]
        self.answer: Any = None

    def piece(self, body: Any, *, durable: bool = False, keep: bool = True) -> None:
        """Take the progress that a slow compaction reports."""
        assert isinstance(body, sto.Progress)

    def done(self, body: Any) -> None:
        self.answer, self.ended = body, True

    def fail(self, error: AiosError) -> None:
        self.answer, self.ended = error, True


class System:
    """Storage in a folder, and its calls as if they returned at once."""

    def __init__(self, folder: Path, boot: int = 0) -> None:
        """Numbers of calls begin anew with each `boot`."""
        self.folder, self.boot = folder, boot
        self.posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.store = Store(folder, self.posted.put, system=str(boot))
        shares = Shares(lambda: {"team": Group(members=["/a/*"])})
        self.storage = Storage(self.store, LmdbBlobs(self.store), shares, QUOTA, "lmdb")
        self.maintenance = Maintenance(self.storage, self.store, self.posted.put)
        table = ProcessTable(9, 9, 9)
        self.processes = {PERSON: table.add("client", "me", 0, 0, Limits(), 0.0)}
        for name in OWNERS[1:]:
            above = self.processes.get(name.rpartition("/")[0])
            parent = above.pid if above is not None and above.kind == "agent" else 0
            short = name.rpartition("/")[2]
            self.processes[name] = table.add("agent", short, parent, 0, Limits(), 0.0)
            assert self.processes[name].principal == name
        self.last = 0

    def start(self, who: str, do: Callable[[Call], Any]) -> Asked:
        self.last += 1
        call = Asked(self.processes[who], self.last)
        try:
            body = do(call)
        except AiosError as error:
            call.fail(error)
        else:
            call.run(body) if isinstance(body, Awaitable) else call.done(body)
        return call

    def ask(self, who: str, do: Callable[[Call], Any]) -> Any:
        call = self.start(who, do)
        while not call.ended:
            self.posted.get(timeout=LIMIT)()
        return call.answer

    def close(self) -> None:
        self.store.close()
        while not self.posted.empty():
            self.posted.get()()
