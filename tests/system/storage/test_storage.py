"""Storage through the real kernel: objects, conditions, watches, uploads."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, run_system
from helpers import left_empty, result_of
from raw import Raw

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls import sto
from aios.syscalls.errors import BadInput, Conflict, NotFound, UploadGone

Program = Callable[[str], str]
BIG = os.urandom(1 << 20) * 5


@pytest.fixture(scope="module")
def shared(homes: Path) -> Iterator[System]:
    """A system that only these tests use."""
    yield from run_system(homes / "storage", {"slots": 1, "ctx": 256, "grace": 0.5})


@pytest.fixture
def storage(aios: Aios) -> Iterator[Aios]:
    yield from left_empty(aios)


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
    assert result_of(storage, path, name="lonely") == ["/lonely"]


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
    assert result_of(storage, path) == ["limit", "again/x"]


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


# --- compaction -----------------------------------------------------------------------------------


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
