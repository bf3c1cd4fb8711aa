"""The memory manager against plain dicts: budgets, swap, quotas, agents that end and come back, the
kernel's death and the power cut at any moment. On the managers and the store, without a kernel."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from store_loop import Loop
from waits import hear

from aios.kernel.config import Config
from aios.kernel.lib.coroutine import Wait
from aios.kernel.memory.lru_k import LruKCache
from aios.kernel.memory.manager import Memory
from aios.kernel.memory.owners import Owners
from aios.kernel.process import Process, ProcessTable
from aios.kernel.store.done_calls import CallId
from aios.kernel.store.store import Store
from aios.syscalls import mem
from aios.syscalls.errors import AiosError, Conflict, LimitReached
from aios.syscalls.proc import Limits

QUOTA, RAM = 3000, 1200  # bytes
NAMES = ("a", "b")  # of agents; two of one name may be alive
KEYS = ["a", "b", "\u00e9" * 100, "a/1", "a/2"]
SLOTS = 3  # agents that are alive

Items = dict[tuple[str, str], Any]  # by space and key


class Call:
    """As much of a system call as the managers use."""

    last = 0

    def __init__(self, process: Process) -> None:
        Call.last += 1
        self.process = process
        self.once = CallId(process.pid, Call.last, "mem.delete")


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.loop = Loop()
        self.table = ProcessTable(100, 100, 10)
        self.count = 0
        self.live: dict[int, Process] = {}  # by place
        self.model: dict[int, Items] = {}  # by pid, of those who have used their memory
        self.kept: dict[str, Items] = {}  # by name, what nobody has now
        self.holder: dict[str, int] = {}  # who has what is kept under a name
        self.open(self.folder / "0")
        for place in range(SLOTS):
            self.start(place, NAMES[place % 2])

    def open(self, folder: Path) -> None:
        self.store = Store(folder, self.loop.posted.put)
        config = Config(home="/", mem_resident=RAM, logs=2)
        self.owners = Owners(self.store, self.table, config, "system")
        self.memory = Memory(self.owners)
        self.owners.recover()

    def start(self, place: int, name: str) -> None:
        process = self.table.add("agent", name, 0, 0, Limits(mem_bytes=QUOTA), 0.0)
        process.move("running")
        self.live[place] = process

    def begin(self, place: int) -> Process:
        """Whose turn it is; at its first it takes over what was kept, or has nothing."""
        process = self.live[place]
        if process.pid not in self.model:
            if process.name in self.kept:
                self.holder[process.name] = process.pid
            self.model[process.pid] = self.kept.pop(process.name, {})
        return process

    def ask(self, method: str, process: Process, args: Any) -> Any:
        """Its reply, as it comes over the wire, or its error."""
        answers: list[Any] = []
        try:
            body = getattr(self.memory, method)(Call(process), args)
        except AiosError as error:
            return error
        hear(body, answers.append) if isinstance(body, Awaitable) else answers.append(body)
        reply = self.loop.wait(answers, 1)[0]
        if isinstance(reply, AiosError):
            return reply
        return msgspec.msgpack.decode(msgspec.msgpack.encode(reply))

    def size(self, pid: int) -> int:
        items = self.model[pid].items()
        return sum(len(k.encode()) + len(msgspec.msgpack.encode(v)) for (_, k), v in items)

    places = st.integers(0, SLOTS - 1)
    spaces = st.sampled_from(["main", "two"])
    keys = st.sampled_from(KEYS)
    values = st.one_of(st.none(), st.integers(0, 9), st.sampled_from(["x" * 300, b"y" * 700]))
    some = st.dictionaries(keys, values, min_size=1)

    @rule(place=places, space=spaces, items=some, early=st.booleans())
    def put(self, place: int, space: str, items: dict[str, Any], *, early: bool) -> None:
        process = self.begin(place)
        before = self.model[process.pid]
        after = before | {(space, key): value for key, value in items.items()}
        grows = self.size(process.pid)
        self.model[process.pid] = after
        grows = self.size(process.pid) - grows
        limit = process.limits.mem_bytes
        assert limit is not None
        fits = grows <= 0 or self.size(process.pid) <= limit
        args = mem.PutItems(items=items, space=space, ack="accepted" if early else "durable")
        reply = self.ask("put", process, args)
        if not fits:
            self.model[process.pid] = before
        assert isinstance(reply, LimitReached) == (not fits and not early), reply

    @rule(place=places, space=spaces, wanted=st.lists(keys, min_size=1))
    def get(self, place: int, space: str, wanted: list[str]) -> None:
        process = self.begin(place)
        known = self.model[process.pid]
        reply = self.ask("get", process, mem.GetItems(keys=wanted, space=space))
        assert reply["items"] == {k: known[space, k] for k in wanted if (space, k) in known}

    @rule(place=places, space=spaces, wanted=st.lists(keys, min_size=1))
    def delete(self, place: int, space: str, wanted: list[str]) -> None:
        process = self.begin(place)
        known = self.model[process.pid]
        count = sum(known.pop((space, key), known) is not known for key in wanted)
        assert (
            self.ask("delete", process, mem.DeleteItems(keys=wanted, space=space))["count"] == count
        )

    @rule(place=places, space=st.none() | spaces)
    def clear(self, place: int, space: str | None) -> None:
        process = self.begin(place)
        known = self.model[process.pid]
        self.model[process.pid] = {
            name: value for name, value in known.items() if space not in (None, name[0])
        }
        self.ask("clear", process, mem.Clear(space=space))

    @rule(place=places, keep=st.booleans())
    def keep(self, place: int, *, keep: bool) -> None:
        process = self.begin(place)
        name = process.name
        others = name in self.kept or self.holder.get(name) not in (None, process.pid)
        reply = self.ask("keep", process, mem.Keep(keep=keep))
        assert isinstance(reply, Conflict) == (keep and others)
        if keep and not others:
            self.holder[name] = process.pid
        elif not keep and self.holder.get(name) == process.pid:
            del self.holder[name]

    @rule(place=places, limit=st.sampled_from([QUOTA // 4, QUOTA]))
    def limit(self, place: int, limit: int) -> None:
        self.live[place].limits = Limits(mem_bytes=limit)

    @rule(place=places, name=st.sampled_from(NAMES))
    def end(self, place: int, name: str) -> None:
        """One ends, and another begins in its place."""
        process = self.live[place]
        self.memory.ended(process)
        self.table.end(process, 0, "exit", 0.0)
        items = self.model.pop(process.pid, {})
        if self.holder.get(process.name) == process.pid:
            del self.holder[process.name]
            self.kept[process.name] = items
        self.start(place, name)

    @rule(place=places, items=some)
    def crash(self, place: int, items: dict[str, Any]) -> None:
        """The file is copied while a put may be on its way: all of it is there, or nothing."""
        process = self.begin(place)
        self.settle()
        unknown = [pid for pid in self.model if not self.is_stored(pid)]
        answers: list[Any] = []
        put = self.memory.put(Call(process), mem.PutItems(items=items))  # type: ignore[arg-type]
        assert isinstance(put, Wait)
        hear(put, answers.append)
        self.count += 1
        copy = self.folder / str(self.count)
        copy.mkdir()
        shutil.copy(self.store.path, copy)
        self.loop.wait(answers, 1)
        self.close()
        self.open(copy)
        for pid in unknown:  # who had written nothing begins anew
            if pid not in self.owners.by_pid:
                assert self.model.pop(pid) == {}
        process = self.begin(place)
        after = self.model[process.pid] | {("main", key): value for key, value in items.items()}
        if self.found(process) == after:
            self.model[process.pid] = after

    def is_stored(self, pid: int) -> bool:
        owner = self.owners.by_pid.get(pid)
        return owner is None or owner.stored

    def settle(self) -> None:
        """Wait until nothing is written."""
        answers: list[Any] = []
        while not answers or self.owners.sweeping:
            self.memory.batch.flush()
            count = len(answers) + 1
            hear(self.store.write(lambda _: None), answers.append)
            self.loop.wait(answers, count)

    def found(self, process: Process) -> Items:
        found: Items = {}
        for space in ("main", "two"):
            page = self.ask("scan", process, mem.Scan(space=space))
            found |= {(space, key): value for key, value in page["items"]}
        return found

    def read(self, process: Process) -> Items:
        """The same by way of what is in RAM."""
        found: Items = {}
        for space in ("main", "two"):
            reply = self.ask("get", process, mem.GetItems(keys=KEYS, space=space))
            found |= {(space, key): value for key, value in reply["items"].items()}
        return found

    @invariant()
    def it_holds_the_model(self) -> None:
        for process in self.live.values():
            if process.pid in self.model:
                assert self.found(process) == self.model[process.pid]
                assert self.read(process) == self.model[process.pid]
                assert self.owners.by_pid[process.pid].cache.bytes <= RAM
        self.settle()
        assert self.owners.check() == []

    def close(self) -> None:
        self.settle()
        self.store.close()

    def teardown(self) -> None:
        self.close()
        shutil.rmtree(self.folder)


TestMachine = Machine.TestCase


# --- which items are in RAM -----------------------------------------------------------------------


def test_a_scan_drives_out_nothing_that_is_in_use() -> None:
    cache: LruKCache[int] = LruKCache(100)
    cache.put(0, b"x" * 40)
    cache.get(0)
    for name in range(1, 20):
        cache.put(name, b"y" * 40)
    assert sorted(cache.items) == [0, 19]
    assert cache.bytes == 80
    assert cache.evicted == 18


def test_of_those_used_twice_the_one_whose_use_before_is_the_oldest_goes() -> None:
    cache: LruKCache[str] = LruKCache(30)
    for name in "abcabcc":
        if cache.get(name) is None:
            cache.put(name, b"x" * 10)
    cache.get("a")  # before: a 4, b 2, c 6
    cache.put("d", b"")
    cache.get("d")
    cache.put("d", b"x" * 10)
    assert sorted(cache.items) == ["a", "c", "d"]


def test_one_that_comes_back_is_known_again() -> None:
    cache: LruKCache[str] = LruKCache(10)
    cache.put("a", b"x" * 10)
    cache.put("b", b"x" * 10)  # a goes
    cache.put("a", b"x" * 10)  # the second use of a: b goes, which had one
    assert list(cache.items) == ["a"]


def test_what_is_larger_than_the_budget_is_in_no_ram() -> None:
    cache: LruKCache[str] = LruKCache(5)
    cache.put("a", b"x" * 10)
    assert (cache.items, cache.bytes) == ({}, 0)
