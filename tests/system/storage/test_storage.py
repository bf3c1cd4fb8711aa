"""Storage through the real kernel, by agents and by a person."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Boot, eventually, on_tiny, run_system
from helpers import kill_kernel
from raw import Raw

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls import sto
from aios.syscalls.errors import (
    AiosError,
    BadInput,
    Conflict,
    LimitReached,
    NotFound,
    StoreDamaged,
    StoreFull,
    UploadGone,
)
from aios.syscalls.wire import ABI_VERSION, DONE, FAILED

Program = Callable[[str], str]
BIG = os.urandom(1 << 20) * 5


@pytest.fixture(scope="module")
def shared(homes: Path) -> Iterator[System]:
    """A system that only these tests use."""
    yield from run_system(homes / "storage", {"slots": 1, "ctx": 256, "grace": 0.5})


@pytest.fixture
def storage(aios: Aios) -> Iterator[Aios]:
    """A person's connection, with nothing stored before and nothing wrong afterwards."""
    yield aios
    assert aios.sto_verify().wait()["problems"] == []
    for holding in aios.sto_owners():
        for info in list(aios.sto_list(deleted=True, owner=holding.owner)):
            aios.sto_purge(info.path, info.owner)
        for grant in aios.sto_shares(holding.owner):
            if grant.owner == holding.owner:
                aios.sto_share(grant.prefix, grant.to, "none", owner=grant.owner)
    assert aios.sto_verify().wait()["chunks"] == 0


def done(aios: Aios, program: str, *task: Any, name: str | None = None) -> Any:
    """Run an agent; return its result."""
    pid = aios.spawn(program, *task, name=name)
    exited = aios.wait(pid, timeout=60)
    assert exited.code == 0, aios.log(pid).data.decode()
    return exited.result


# --- objects --------------------------------------------------------------------------------------


def test_versions_of_an_object(storage: Aios) -> None:
    first = storage.sto_put("notes/a", "one", tags=["x", "y"], media="text/plain")
    assert (first.version, first.size, first.what, first.tags) == (1, 3, "put", ["x", "y"])
    assert storage.sto_put("notes/a", b"two").version == 2
    assert storage.sto_get("notes/a") == b"two"
    assert storage.sto_get("notes/a", 1) == b"one"
    assert storage.sto_read("notes/a", 1).info == first
    assert storage.sto_delete("notes/a").version == 3
    with pytest.raises(NotFound, match="notes/a"):
        storage.sto_get("notes/a")
    with pytest.raises(NotFound, match="deletion"):
        storage.sto_get("notes/a", 3)
    with pytest.raises(NotFound):
        storage.sto_delete("notes/a")
    with pytest.raises(NotFound, match="version 9"):
        storage.sto_get("notes/a", 9)
    assert storage.sto_rollback("notes/a", 1).version == 4
    assert storage.sto_get("notes/a") == b"one"
    assert storage.sto_read("notes/a").info.tags == ["x", "y"]
    whats = [(info.version, info.what) for info in storage.sto_history("notes/a")]
    assert whats == [(4, "rollback"), (3, "delete"), (2, "put"), (1, "put")]
    assert storage.sto_purge("notes/a").what == "purge"
    with pytest.raises(NotFound):
        list(storage.sto_history("notes/a"))
    assert storage.sto_put("notes/a", b"").version == 6  # no number is given twice
    assert storage.sto_get("notes/a") == b""


def test_a_diff(storage: Aios) -> None:
    storage.sto_put("diff", "one\ntwo\n")
    storage.sto_put("diff", "one\n2\nthree")
    assert storage.sto_diff("diff", 1).splitlines()[2:] == ["@@ -1,2 +1,3 @@", " one", "-two", "+2",
                                                     "+three"]  # fmt: skip
    assert storage.sto_diff("diff", 2, 2) == ""
    storage.sto_put("diff", b"\xff")
    with pytest.raises(BadInput, match="not text"):
        storage.sto_diff("diff", 1)


def test_lists_in_pages(storage: Aios) -> None:
    paths = [f"p/{number:03}" for number in range(450)]
    for at in range(0, 450, 150):
        storage.sto_batch([{"path": path, "data": b"x"} for path in paths[at : at + 150]])
    storage.sto_put("p", b"beside")
    storage.sto_put("q", b"")
    storage.sto_delete("p/007")
    assert [info.path for info in storage.sto_list("p/")] == [p for p in paths if p != "p/007"]
    assert [info.path for info in storage.sto_list("p/00", deleted=True)] == paths[:10]
    assert next(info.path for info in storage.sto_list()) == "p"
    assert list(storage.sto_list("r")) == []


def test_large_contents_are_streamed(storage: Aios) -> None:
    info = storage.sto_put("big", BIG)
    assert info.size == len(BIG)
    stream = storage.sto_stream("big")
    first = next(stream)
    storage.sto_put("big", io.BytesIO(BIG[::-1]))  # what is being read stays what it was
    assert b"".join([first, *stream]) == BIG
    assert storage.sto_get("big") == BIG[::-1]
    middle = storage.sto_read("big", 1, offset=sto.CHUNK_BYTES - 10, count=20)
    assert middle.data == BIG[sto.CHUNK_BYTES - 10 : sto.CHUNK_BYTES + 10]
    assert storage.sto_read("big", 1, offset=len(BIG) + 5).data == b""
    assert storage.sto_read("big", 1, count=0).data == b""


def test_owners_come_in_pages(storage: Aios) -> None:
    names = ["", *(f"/owner/{number}" for number in range(430))]
    for name in names:
        storage.sto_put("a", name.encode(), owner=name)
    found = [holding.owner for holding in storage.sto_owners()]
    assert len(set(found)) == len(found)
    assert set(found) >= set(names)
    paged: list[str] = []
    after = None
    for size in [100] * (len(found) // 100) + [len(found) % 100]:
        page = storage.start("sto.owners", limit=100, after=after).wait()
        paged += [holding["owner"] for holding in page["owners"]]
        assert (len(page["owners"]), page["after"]) == (size, paged[-1] if size == 100 else None)
        after = page["after"]
    assert paged == found


def test_an_agent_hears_of_itself_alone(storage: Aios, program: Program) -> None:
    storage.sto_put("a", b"1")
    path = program("return [holding.owner for holding in aios.sto_owners()]")
    assert done(storage, path, name="lonely") == ["/lonely"]


def test_equal_contents_of_one_owner_are_stored_once(storage: Aios) -> None:
    before = {row.owner: row.bytes for row in storage.sto_owners()}.get("", 0)
    for number in range(3):
        storage.sto_put(f"same{number}", BIG)
    held = {row.owner: row.bytes for row in storage.sto_owners()}[""]
    assert held - before < 2 * len(BIG)
    storage.sto_purge("same0")
    assert storage.sto_get("same2") == BIG


# --- conditions -----------------------------------------------------------------------------------


def test_compare_and_swap(storage: Aios) -> None:
    assert storage.sto_put("swap", b"1", if_version=0).version == 1
    with pytest.raises(Conflict, match="it has version 1"):
        storage.sto_put("swap", b"2", if_version=0)
    assert storage.sto_put("swap", b"2", if_version=1).version == 2
    with pytest.raises(Conflict):
        storage.sto_delete("swap", if_version=1)
    with pytest.raises(Conflict):
        storage.sto_rollback("swap", 1, if_version=1)
    assert storage.sto_delete("swap", if_version=2).version == 3
    assert storage.sto_put("swap", b"3", if_version=0).version == 4
    storage.sto_purge("swap")
    with pytest.raises(Conflict, match="there is none"):
        storage.sto_put("swap", b"4", if_version=4)


def test_an_agent_follows_so_much_and_no_more(storage: Aios, program: Program) -> None:
    """Each change looks at all who follow: who is one too many is refused."""
    path = program(
        "calls = [aios.start('sto.watch', prefix=str(n)) for n in range(17)]\n"
        "try:\n    calls[16].wait(20)\nexcept AiosError as error:\n    refused = error.code\n"
        "aios.cancel(calls[0].id)\nagain = aios.start('sto.watch', prefix='again/')\n"
        "aios.whoami()\naios.sto_put('again/x', 'heard')\n"
        "return [refused, next(iter(again))['path']]"
    )
    assert done(storage, path) == ["limit", "again/x"]


def test_many_who_swap_lose_nothing(storage: Aios, program: Program) -> None:
    storage.sto_put("counter", b"0")
    storage.sto_share("counter", "/*", "write")
    path = program(
        "for _ in range(5):\n"
        "    while True:\n"
        "        now = aios.sto_read('counter', owner='')\n"
        "        try:\n"
        "            aios.sto_put('counter', b'%d' % (int(now.data) + 1), owner='',\n"
        "                     if_version=now.info.version)\n"
        "            break\n"
        "        except AiosError as error:\n"
        "            if error.code != 'store.conflict': raise"
    )
    pids = [storage.spawn(path) for _ in range(4)]
    for pid in pids:
        assert storage.wait(pid, timeout=60).code == 0, storage.log(pid).data
    assert storage.sto_get("counter") == b"20"


def test_a_batch_is_all_or_nothing(storage: Aios) -> None:
    storage.sto_put("ba", b"1")
    upload = storage.sto_upload(io.BytesIO(BIG))
    changes: list[dict[str, Any]] = [
        {"path": "ba", "delete": True, "if_version": 1},
        {"path": "bb", "data": b"2", "tags": ["t"]},
        {"path": "bc", "upload": upload},
        {"path": "bd", "data": b"3", "if_version": 5},
    ]
    with pytest.raises(Conflict):
        storage.sto_batch(changes)
    assert [info.path for info in storage.sto_list()] == ["ba"]
    changes[-1]["if_version"] = 0
    assert [info.version for info in storage.sto_batch(changes)] == [2, 1, 1, 1]
    assert storage.sto_get("bc") == BIG
    assert [info.path for info in storage.sto_list()] == ["bb", "bc", "bd"]
    with pytest.raises(UploadGone):
        storage.sto_batch(changes[2:3])


# --- watches --------------------------------------------------------------------------------------


def test_a_watch_hears_of_changes_until_it_is_cancelled(storage: Aios, system: System) -> None:
    with connect(system.home, "watcher") as watcher:
        watch = watcher.sto_watch("w/")
        watcher.whoami()  # by then it has begun
        storage.sto_put("other", b"")
        storage.sto_put("w/a", b"1")
        storage.sto_batch([{"path": "w/b", "data": b""}, {"path": "w/a", "delete": True}])
        storage.sto_rollback("w/a", 1)
        storage.sto_purge("w/b")
        heard = [next(watch) for _ in range(5)]
        assert [(info.path, info.version, info.what) for info in heard] == [
            ("w/a", 1, "put"), ("w/b", 1, "put"), ("w/a", 2, "delete"), ("w/a", 3, "rollback"),
            ("w/b", 2, "purge"),
        ]  # fmt: skip
        watch.close()  # type: ignore[attr-defined]
        assert watcher.check() == []


def test_what_is_not_shared_any_more_is_not_heard_of(storage: Aios, program: Program) -> None:
    storage.sto_share("w", "/*")
    path = program(
        "watch = aios.sto_watch('w', owner='')\naios.whoami()\naios.send('test', 'up')\n"
        "first = next(watch).path\naios.send('test', first)\n"
        "aios.recv()\nlate = aios.start('call.cancel', call=watch.gi_frame.f_locals['call'].id)\n"
        "late.wait()\n"
        "try:\n    return [first, next(watch).path]\n"
        "except AiosError as error:\n    return [first, error.code]"
    )
    pid = storage.spawn(path)
    storage.recv(sender=pid, timeout=30)
    storage.sto_put("w/1", b"")
    assert storage.recv(sender=pid, timeout=30).body == "w/1"
    storage.sto_share("w", "/*", "none")
    storage.sto_put("w/2", b"")
    storage.send(pid, "go on")
    assert storage.wait(pid, timeout=30).result == ["w/1", "call.cancelled"], storage.log(pid)


# --- who may --------------------------------------------------------------------------------------

ACTS = {
    "read": ["sto_get('{p}', owner=o)", "sto_history('{p}', owner=o)", "sto_list('{d}', owner=o)",
             "sto_watch('{d}', owner=o)"],
    "write": ["sto_put('{p}', b'x', owner=o)", "sto_put('{p}', bytes(300000), owner=o)",
              "sto_delete('{p}', owner=o)", "sto_rollback('{p}', 1, owner=o)",
              "sto_batch([{{'path': '{p}', 'data': b'y'}}], owner=o)"],
    "own": ["sto_purge('{p}', owner=o)", "sto_share('{p}', '/x', owner=o)", "sto_shares(owner=o)"],
}  # fmt: skip
TRY = """
aios.sto_put('open/a', 'of ' + task['me'])
aios.sto_put('closed/a', 'of ' + task['me'])
aios.sto_share('open', '/all/*', 'write')
aios.send('test', 'ready')
aios.recv()
found = []
for o in task['others']:
    for act in task['acts']:
        try:
            if not act.startswith(('sto_list', 'sto_history', 'sto_watch')):
                eval('aios.' + act)
            else:
                call = eval('aios.' + act)
                if act.startswith('sto_watch'):
                    aios.cancel(call.gi_frame.f_locals['call'].id)
                list(call)
            found.append([o, act, 'done'])
        except AiosError as error:
            found.append([o, act, error.code])
aios.send('test', found)
aios.recv()
"""


def test_every_agent_against_every_other_s_objects(storage: Aios, program: Program) -> None:
    """Each tries everything on each other's, a child's, a parent's and a person's objects."""
    storage.sto_put("closed/a", b"a person's")
    path = program(TRY)
    acts = [act.format(p="closed/a", d="closed/") for kind in ACTS.values() for act in kind]
    names = ["ann", "bob", "cy"]
    owners = [f"/{name}" for name in names]
    pids = [
        storage.spawn(
            path, {"me": name, "others": ["", "/nobody", *owners], "acts": acts}, name=name
        )
        for name in names
    ]
    for pid in pids:
        storage.recv(sender=pid, timeout=30)
    for pid, own in zip(pids, owners, strict=True):  # one by one: what is purged is its own
        storage.send(pid, "go")
        for owner, act, outcome in storage.recv(sender=pid, timeout=60).body:
            if owner != own:
                assert outcome == "access.denied", (own, owner, act, outcome)
            else:
                assert outcome in ("done", "call.cancelled"), (own, owner, act, outcome)
        for pid_, owner in zip(pids, owners, strict=True):
            if pid_ > pid:
                assert storage.sto_get("closed/a", owner=owner) == f"of {owner[1:]}".encode()
    for pid in pids:
        storage.send(pid, "end")
        storage.wait(pid, timeout=30)


@pytest.mark.parametrize(
    ("mode", "allowed"), [("read", ["read"]), ("write", ["read", "write"]), ("none", [])]
)
def test_what_is_shared_can_be_reached_so_far_and_no_further(
    storage: Aios, program: Program, mode: str, allowed: list[str]
) -> None:
    giver = f"/giver-{mode}"
    done(storage, program("aios.sto_put('d/a', b'1')\naios.sto_put('d2', b'1')"), name=giver[1:])
    if mode == "none":
        storage.sto_share("d", "/taker", "write", owner=giver)
    storage.sto_share("d", "/taker", mode, owner=giver)
    body = TRY[TRY.index("found") :].replace(
        "aios.send('test', found)\naios.recv()", "return found"
    )
    for kind, forms in ACTS.items():
        task = {"others": [giver], "acts": [form.format(p="d/a", d="d/") for form in forms]}
        for _, act, outcome in done(storage, program(body), task, name="taker"):
            expected = ["done", "call.cancelled"] if kind in allowed else ["access.denied"]
            assert outcome in expected, (mode, act, outcome)
        task["acts"] = [form.format(p="d2", d="d2") for form in forms if "{p}" in form]
        for _, act, outcome in done(storage, program(body), task, name="taker"):
            assert outcome == "access.denied", (mode, act)


def test_subtrees_and_groups(boot: Boot, program: Program) -> None:
    system = boot()
    read = program(
        "try:\n    return aios.sto_get('a', owner='').decode()\n"
        "except AiosError as error:\n    return error.code"
    )
    below = program(f"pid = aios.spawn({read!r}, name='bob')\nreturn aios.wait(pid).result")
    with connect(system.home) as aios:
        aios.sto_put("a", b"1")
        aios.set_group("readers", {"members": ["/ann", "/team/*"]})
        for to, who in [
            ("/ann", ["1", "access.denied", "access.denied"]),
            ("/team/*", ["access.denied", "access.denied", "1"]),
            ("readers", ["1", "access.denied", "1"]),
        ]:
            aios.sto_share("a", to)
            assert [grant.to for grant in aios.sto_shares()] == [to]
            found = [done(aios, read, name="ann"), done(aios, read, name="team"),
                     done(aios, below, name="team")]  # fmt: skip
            assert found == who, to
            aios.sto_share("a", to, "none")
        with pytest.raises(NotFound, match="no group"):
            aios.sto_share("a", "writers")
        with pytest.raises(NotFound, match="not shared"):
            aios.sto_share("a", "readers", "none")


def test_shares_are_listed_for_both_sides(storage: Aios, program: Program) -> None:
    storage.sto_put("a", b"")
    storage.sto_share("", "/reader")
    path = program("return [[g.owner, g.prefix, g.to, g.mode] for g in aios.sto_shares()]")
    assert done(storage, path, name="reader") == [["", "", "/reader", "read"]]
    assert done(storage, path, name="other") == []


def test_what_one_shares_with_oneself_is_listed_once(storage: Aios, program: Program) -> None:
    path = program(
        "for to in ('/self', '/*'):\n    aios.sto_share('a', to)\n"
        "return [[g.prefix, g.to] for g in aios.sto_shares()]"
    )
    assert done(storage, path, name="self") == [["a", "/*"], ["a", "/self"]]


def test_an_agent_s_objects_are_there_when_it_comes_back(storage: Aios, program: Program) -> None:
    done(storage, program("aios.sto_put('a', b'kept')"), name="back")
    assert done(storage, program("return aios.sto_get('a')"), name="back") == b"kept"
    assert storage.sto_get("a", owner="/back") == b"kept"
    assert storage.sto_read("a", owner="/back").info.by == "/back"


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["a//b", "/a", "a/", ".", "a/../b", "a/.", "..", "a\nb", "a\0", "\x85", "é" * 101]
)
def test_what_is_no_path_is_refused(storage: Aios, path: str) -> None:
    for act in (
        lambda: storage.sto_put(path, b""),
        lambda: storage.sto_batch([{"path": "fine", "data": b""}, {"path": path, "data": b""}]),
        lambda: storage.sto_share(path, "/x"),
    ):
        with pytest.raises(BadInput):
            act()
    assert list(storage.sto_list()) == []


@pytest.mark.parametrize("name", ["writer", "/", "//", "/a/", "/a//b", "a/b"])
def test_what_is_no_owner_is_refused(storage: Aios, name: str) -> None:
    """A slip would else make objects that no agent ever finds."""
    for act in (
        lambda: storage.sto_put("a", b"", owner=name),
        lambda: list(storage.sto_list(owner=name)),
        lambda: storage.sto_get("a", owner=name),
        lambda: storage.sto_upload(io.BytesIO(b"a"), owner=name),
        lambda: storage.sto_shares(name),
        lambda: storage.sto_search("a", owner=name),
        lambda: storage.mem_put({"a": 1}, principal=name),
        lambda: storage.mem_keep(principal=name),
    ):
        with pytest.raises(BadInput, match="no principal"):
            act()
    with pytest.raises((BadInput, NotFound)):
        storage.sto_share("a", name)
    storage.sto_share("a", "/*")


def test_paths_of_any_script(storage: Aios) -> None:
    paths = ["a b", "é" * 100, "x" * 200, "日本/語", "a/.hidden/..x", "~", "\U0001f98a"]
    for path in paths:
        storage.sto_put(path, path)
    assert sorted(info.path for info in storage.sto_list()) == sorted(paths)
    assert [storage.sto_get(path).decode() for path in paths] == paths


def test_a_change_says_one_thing(storage: Aios) -> None:
    for change in ({}, {"data": b"", "delete": True}, {"data": b"", "upload": 1}):
        with pytest.raises(BadInput, match="exactly one"):
            storage.sto_batch([{"path": "a", **change}])


def test_past_its_quota_an_agent_reads_on(boot: Boot, program: Program) -> None:
    system = boot(storage_bytes=1 << 20)
    path = program(
        "found = []\n"
        "for number, size in enumerate(task):\n"
        "    try:\n        found.append(aios.sto_put(str(number), os.urandom(size)).version)\n"
        "    except AiosError as error:\n        found.append(error.code)\n"
        "found.append(len(aios.sto_get('0')))\naios.sto_purge('0')\n"
        "aios.sto_put('again', os.urandom(600_000))\n"
        "return found"
    )
    with connect(system.home) as aios:
        sizes = [600_000, 600_000, 50_000, 10_000_000, 50_000]
        found = done(aios, path, sizes, name="greedy")
        assert found == [1, "limit", 1, "limit", 1, 600_000]
        (holding,) = aios.sto_owners()
        assert holding.owner == "/greedy"
        assert 700_000 < holding.bytes < 710_000
        heirs = program(
            "spawn = lambda n: aios.spawn(task, [200_000], name=f'n{n}')\n"
            "found = [aios.wait(spawn(n)).result for n in range(2)]\n"
            "return [first[0] for first in found]"
        )
        child = program("try:\n    return [aios.sto_put('0', os.urandom(task[0])).version]\n"
                        "except AiosError as error:\n    return [error.code]")  # fmt: skip
        assert done(aios, heirs, child, name="greedy") == [1, "limit"]
        aios.sto_put("a person has none", bytes(2 << 20))
        assert aios.sto_verify().wait()["problems"] == []


def test_what_a_version_says_of_itself_counts_against_the_quota(
    boot: Boot, program: Program
) -> None:
    path = program(
        "tags = [chr(0x20000 + n) * 64 for n in range(32)]\nput = 0\n"
        "try:\n    while True:\n"
        "        aios.sto_batch([{'path': 'a', 'data': b'', 'tags': tags}] * 4)\n        put += 4\n"
        "except AiosError as error:\n    aios.sto_purge('a')\n    return [put, error.code]"
    )
    with connect(boot(storage_bytes=1 << 20).home) as aios:
        put, code = done(aios, path, name="wordy")
        assert (100 < put < 128, code) == (True, "limit")
        assert [holding.bytes for holding in aios.sto_owners()] == [256]  # purged: the path alone
        assert aios.sto_verify().wait()["problems"] == []


def test_a_full_store_refuses_and_reads_on(boot: Boot) -> None:
    system = boot(store_bytes=1 << 25)
    with connect(system.home) as aios:
        kept = 0
        with pytest.raises(AiosError) as refused:
            while kept < 100:
                aios.sto_put(f"a{kept}", os.urandom(1 << 20))
                kept += 1
        assert refused.value.code == "store.full"
        assert kept > 15
        assert len(aios.sto_get("a0")) == 1 << 20
        for number in range(4):
            aios.sto_purge(f"a{number}")
        assert aios.sto_put("b", b"x" * 100).version == 1
        assert aios.sto_verify().wait()["problems"] == []


@pytest.mark.parametrize("place", ["lmdb", "folder"])
def test_rows_alone_do_not_fill_a_store_for_good(boot: Boot, tmp_path: Path, place: str) -> None:
    """Adding rows is refused while there is still room in which to remove some."""
    blobs = "lmdb" if place == "lmdb" else f"file://{tmp_path}/blobs"
    system = boot(store_bytes=1 << 25, blobs=blobs)
    tags = [f"{number:02}" + "t" * 62 for number in range(32)]
    with connect(system.home) as aios:
        count = 0
        with pytest.raises(StoreFull):
            while True:
                aios.sto_batch(
                    [{"path": f"{count}/{n}", "data": b"", "tags": tags} for n in range(20)]
                )
                count += 1
        assert count > 100
        for adds in (  # each fills up what a small row may still have fitted in
            lambda n: aios.sto_put("0/0", b"", tags=tags),
            lambda n: aios.sto_delete(f"{n // 20}/{n % 20}"),
            lambda n: aios.sto_rollback("0/0", 1),
            lambda n: aios.sto_share("0", f"/x{n}"),
            lambda n: aios.sto_upload(io.BytesIO(bytes(300_000))),
            lambda n: aios.mem_put({f"a{n}": "x" * 9000}, principal="/w"),
        ):
            with pytest.raises((StoreFull, LimitReached)):  # of uploads 16 may fit
                for number in range(1000):
                    adds(number)
        for number in range(count):
            aios.sto_purge(f"{number}/0")
        assert aios.sto_compact(1).wait()["chunks"] == 0
        for number in range(count):
            purges = [aios.start("sto.purge", path=f"{number}/{n}") for n in range(1, 20)]
            for purge in purges:
                purge.wait()
        aios.mem_put({"a": "x" * 9000}, principal="/w")
        aios.sto_put("0/0", b"", tags=tags)
        assert aios.sto_verify().wait()["problems"] == []


def test_uploads_have_an_order_and_a_number(storage: Aios, system: System) -> None:
    with Raw(system.home) as raw:
        first = raw.done("sto.upload", data=b"abc", offset=0)
        assert first["size"] == 3
        assert raw.error("sto.upload", data=b"x", offset=7, upload=first["upload"])["code"] == (
            "bad_input"
        )
        assert raw.error("sto.upload", data=b"x", offset=3)["code"] == "bad_input"
        gone = raw.error("sto.put", path="a", upload=first["upload"] + 1)
        assert gone["code"] == "store.upload_gone"
        with Raw(system.home) as other:
            stolen = other.error("sto.put", path="a", upload=first["upload"])
            assert stolen["code"] == "store.upload_gone"
        assert raw.done("sto.put", path="a", upload=first["upload"])["size"] == 3
        for _ in range(16):
            raw.done("sto.upload", data=b"abc", offset=0)
        assert raw.error("sto.upload", data=b"abc", offset=0)["code"] == "limit"
    assert storage.sto_get("a") == b"abc"


def test_what_is_no_content_is_told(storage: Aios) -> None:
    with pytest.raises(TypeError, match="a content is bytes, text or a file, not NoneType"):
        storage.sto_put("none", None)  # type: ignore[arg-type]


def test_what_was_not_put_goes_with_its_process(storage: Aios, system: System) -> None:
    with connect(system.home) as other:
        other.sto_upload(io.BytesIO(BIG))
        assert storage.sto_verify().wait()["chunks"] > 0
    eventually(lambda: storage.sto_verify().wait()["chunks"] == 0)


# --- the kernel's death ---------------------------------------------------------------------------


def test_a_put_whose_reply_was_lost_is_done_once(boot: Boot) -> None:
    """By hand: the same bytes to the next kernel."""
    system = boot()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("sto.put", {"path": "a", "data": b"1"}),
        ("sto.batch", {"changes": [{"path": "a", "data": b"2"}, {"path": "b", "data": b"2"}]}),
        ("sto.rollback", {"path": "a", "version": 1}),
        ("sto.delete", {"path": "b"}),
        ("sto.put", {"path": "c", "data": b"1", "if_version": 0}),
        ("sto.share", {"prefix": "a", "to": "/x"}),
        ("sto.purge", {"path": "c"}),
    ]
    with connect(system.home) as aios, Raw(system.home, hello=False) as raw:
        welcome = raw.done("hello", version=ABI_VERSION, name="raw")
        first = next(raw.ids) + 1
        replies = [raw.final(raw.start(name, **args)) for name, args in calls]
        assert [kind for kind, _ in replies] == [DONE] * len(calls)
        kill_kernel(aios)
        with Raw(system.home, hello=False, first=first - 1) as again:
            back = {"pid": welcome["pid"], "secret": welcome["secret"]}
            again.done("hello", version=ABI_VERSION, back=back)
            for (name, args), reply in zip(calls, replies, strict=True):
                assert again.final(again.start(name, **args)) == reply
        assert [info.version for info in aios.sto_history("a")] == [3, 2, 1]
        assert [info.version for info in aios.sto_history("b")] == [2, 1]
        assert aios.sto_verify().wait()["problems"] == []
        assert aios.check() == []


def test_kernels_killed_while_agents_put(boot: Boot, program: Program) -> None:
    """Each version that was acknowledged is there once, and nothing beside them."""
    system = boot()
    path = program(
        "versions = []\n"
        "for number in range(300):\n"
        "    info = aios.sto_put(f'p/{number % 7}', b'%d of ' % number + task.encode() * 50)\n"
        "    versions.append([number, info.path, info.version])\n"
        "return versions"
    )
    with connect(system.home) as aios:
        names = [f"w{number}" for number in range(4)]
        pids = [aios.spawn(path, name, name=name) for name in names]
        for _ in range(3):
            at = [_count(aios, name) for name in names]
            eventually(partial(_further, aios, names, pids, at))
            kill_kernel(aios)
        for name, pid in zip(names, pids, strict=True):
            exited = aios.wait(pid, timeout=60)
            assert exited.code == 0, aios.log(pid).data
            for number, where, version in exited.result:
                content = aios.sto_get(where, version, owner=f"/{name}")
                assert content == b"%d of " % number + name.encode() * 50
            assert _count(aios, name) == 300
        assert aios.sto_verify().wait()["problems"] == []


def _count(aios: Aios, name: str) -> int:
    return sum(info.version for info in aios.sto_list(owner=f"/{name}"))


def _further(aios: Aios, names: list[str], pids: list[int], at: list[int]) -> bool:
    """Tell whether each writer that is alive has put more objects."""
    alive = {row.pid for row in aios.ps()}
    return all(
        pid not in alive or _count(aios, name) > before + 10
        for name, pid, before in zip(names, pids, at, strict=True)
    )


def test_a_kernel_killed_under_an_upload(boot: Boot) -> None:
    """The pieces sent are gone; the SDK sends them again, and a raw caller gets an error."""
    system = boot()
    with connect(system.home) as aios, connect(system.home, "second") as second:
        upload = second.sto_upload(io.BytesIO(BIG))
        reads = 0

        class Killing(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                nonlocal reads
                reads += 1
                if reads == 40:
                    kill_kernel(aios)
                return super().read(size)

        assert second.sto_put("big", Killing(BIG)).version == 1
        assert second.sto_get("big") == BIG
        with pytest.raises(UploadGone):
            second.sto_batch([{"path": "x", "upload": upload}])
        found = aios.sto_verify().wait()
        assert (found["problems"], found["bytes"]) == ([], 1 << 20)
        assert aios.check() == []


# --- maintenance ----------------------------------------------------------------------------------


def test_compact_drops_old_versions(storage: Aios) -> None:
    for number in range(5):
        storage.sto_put("ca", b"%d" % number * 1000)
        storage.sto_put("cb", b"same")
    storage.sto_delete("cb")
    assert storage.sto_compact(keep=2).wait() == {"versions": 3 + 4, "chunks": 0}
    assert [info.version for info in storage.sto_history("ca")] == [5, 4]
    assert [info.what for info in storage.sto_history("cb")] == ["delete", "put"]
    assert storage.sto_get("ca", 4) == b"3" * 1000
    assert storage.sto_compact(keep=1).wait()["versions"] == 2


def test_maintenance_is_a_person_s(aios: Aios, program: Program) -> None:
    path = program(
        "found = []\n"
        "for call in (aios.sto_verify(), aios.sto_compact(1), aios.sto_backup('/tmp/x')):\n"
        "    try:\n        call.wait()\n"
        "    except AiosError as error:\n        found.append(error.code)\nreturn found"
    )
    assert done(aios, path) == ["access.denied"] * 3


def test_a_damaged_content_is_found_and_harms_no_other(homes: Path) -> None:
    home = homes / "damaged"
    settings = on_tiny(home, slots=1, ctx=256)
    first = System(home, settings, detach=True)
    first.ready()
    with connect(home) as aios:
        aios.sto_put("bad", b"remarkable " * 400)
        aios.sto_put("good", b"fine " * 400)
    first.end()
    path = home / "store" / "data.mdb"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"remarkable ", b"Remarkable "))
    second = System(home, settings, detach=True)
    try:
        second.ready()
        with connect(home) as aios:
            with pytest.raises(StoreDamaged):
                aios.sto_get("bad")
            assert aios.sto_get("good") == b"fine " * 400
            (problem,) = aios.sto_verify().wait()["problems"]
            assert "damaged" in problem
            aios.sto_purge("bad")
            assert aios.sto_verify().wait()["problems"] == []
    finally:
        second.end()


def test_maintenance_that_runs_is_cancelled_and_alone(boot: Boot) -> None:
    system = boot()
    with connect(system.home) as aios, Raw(system.home) as raw:
        for at in range(0, 4000, 250):
            aios.sto_batch([{"path": f"{number}", "data": b""} for number in range(at, at + 250)])
        running = raw.start("sto.verify")
        assert raw.error("sto.compact")["code"] == "limit"
        assert raw.done("call.cancel", call=running)["found"]
        kind, body = raw.final(running)
        assert (kind, body["code"]) == (FAILED, "call.cancelled")
        assert aios.sto_verify().wait()["versions"] == 4000
        assert aios.check() == []


def test_too_many_grants(storage: Aios) -> None:
    for number in range(256):
        storage.sto_share("a", f"/x{number}")
    with pytest.raises(LimitReached):
        storage.sto_share("a", "/more")
    storage.sto_share("a", "/x0", "write")
