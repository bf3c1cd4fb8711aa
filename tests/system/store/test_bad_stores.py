"""A system whose store is not as it was: the rest of it goes on, each call says why it cannot be
served, and the right file brings back all that was acknowledged."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
from conftest import run_system

from aios.agents import Aios, connect
from aios.kernel.lib.coroutine import background
from aios.kernel.store import store as module
from aios.kernel.store.store import Store
from aios.shell.launch import System
from aios.syscalls.errors import AiosError, HomeBusy, StoreDamaged

PAGE, BRANCH, LEAF = 4096, 1, 2  # LMDB's
SETTINGS = {"slots": 1, "ctx": 256, "mem_resident": 0}
ITEMS = {f"k{number:03}": f"{number} " * 300 for number in range(300)}
TEXT = b"kept " * 1000
LARGE = 1 << 20  # bytes


@pytest.fixture(scope="module")
def filled(homes: Path) -> Iterator[Path]:
    """A home whose system has ended, with memory and storage in its store."""
    home = homes / "filled"
    for _ in run_system(home, SETTINGS):
        with connect(home) as aios:
            names = list(ITEMS)
            for at in range(0, len(names), 50):
                aios.mem_put({name: ITEMS[name] for name in names[at : at + 50]}, principal="/w")
            for number in range(200):
                aios.sto_put(f"d/{number}", TEXT)
    yield home


def pages(data: bytes, kind: int) -> list[int]:
    """Where pages of this kind begin that the last commit refers to, or one before."""
    return [at for at in range(2 * PAGE, len(data), PAGE)
            if struct.unpack_from("<H", data, at + 10)[0] == kind]  # fmt: skip


def shortened(data: bytes) -> bytes:
    return data[:40_000]


def foreign(data: bytes) -> bytes:
    return b"something else" * 1000


def wiped(kind: int) -> Callable[[bytes], bytes]:
    def harm(data: bytes) -> bytes:
        harmed = bytearray(data)
        for at in pages(data, kind):
            harmed[at : at + PAGE] = bytes(PAGE)
        return bytes(harmed)

    return harm


def of_calls(aios: Aios) -> dict[str, Any]:
    """Return the outcome of each call: "done", or its error."""
    calls: dict[str, Callable[[], Any]] = {
        "spaces": aios.mem_spaces,
        "items": lambda: list(aios.mem_items(principal="/w")),
        "get": lambda: aios.mem_get(["k001"], principal="/w"),
        "put": lambda: aios.mem_put({"new": 1}, principal="/w"),
        "early": lambda: aios.mem_put({"new": 1}, principal="/w", ack="accepted"),
        "delete": lambda: aios.mem_delete(["none"], principal="/w"),
        "list": lambda: list(aios.sto_list()),
        "read": lambda: aios.sto_get("d/1"),
        "write": lambda: aios.sto_put("new", b"x"),
        "upload": lambda: aios.sto_put("new", bytes(300_000)),
        "share": lambda: aios.sto_share("d", "/w"),
        "verify": lambda: aios.sto_verify().wait(),
        "search": lambda: aios.sto_search("kept", fresh=True),
        "index": aios.sto_index,
    }
    found: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            call()
        except AiosError as error:
            found[name] = error
        else:
            found[name] = "done"
    return found


def large(number: int) -> bytes:
    """Chunks like no other's."""
    return random.Random(number).randbytes(LARGE)


def good(home: Path) -> None:
    """All that was acknowledged is there."""
    with connect(home) as aios:
        assert dict(aios.mem_items(principal="/w")) == ITEMS
        assert [info.path for info in aios.sto_list("d/")] == sorted(f"d/{n}" for n in range(200))
        assert aios.sto_get("d/199") == TEXT
        assert aios.sto_verify().wait()["problems"] == []
        assert aios.check() == []


@pytest.mark.parametrize(
    ("harm", "why"),
    [(shortened, "cut short"), (foreign, "cannot open"), (wiped(BRANCH), ""), (wiped(LEAF), "")],
    ids=["cut short", "foreign", "branches", "leaves"],
)
def test_a_store_that_is_harmed(filled: Path, harm: Callable[[bytes], bytes], why: str) -> None:
    file = filled / "store" / "data.mdb"
    data = file.read_bytes()
    file.write_bytes(harm(data))
    for _ in run_system(filled, SETTINGS):
        with connect(filled) as aios:
            assert aios.generate("Hi", max_tokens=2).result().tokens
            found = of_calls(aios)
            assert found.pop("index") == "done"
            refused = {name: error for name, error in found.items() if error != "done"}
            assert set(refused) >= {"items", "get", "list", "read"}
            for error in refused.values():
                assert isinstance(error, StoreDamaged)
                assert why in error.message
                assert "restore a backup" in error.hint
            assert aios.generate("Hi", max_tokens=2).result().tokens
        done = commands.run(filled, "sto", "list", "--json")
        assert (done.returncode, json.loads(done.stderr)["code"]) == (1, "store.damaged")
        done = commands.run(filled, "mem", "get", "/w", "k001")
        assert (done.returncode, done.stdout) == (1, "")
        assert "hint: restore a backup, or move the folder away" in done.stderr
    file.write_bytes(data)
    for _ in run_system(filled, SETTINGS):
        good(filled)


def test_a_store_of_a_newer_version(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left as it is, for the AIOS that wrote it."""
    file = filled / "store" / "data.mdb"
    before = file.read_bytes()
    store = Store(filled / "store", lambda run: run(), system="newer")
    newer = module._encode(module.FORMAT + 1)
    failed: list[AiosError] = []
    background(store.write(lambda txn: txn.put("meta", b"format", newer)), failed.append)
    store.close()
    assert failed == []
    data = file.read_bytes()
    for _ in run_system(filled, SETTINGS):
        with connect(filled) as aios:
            found = of_calls(aios)
            assert found.pop("index") == "done"
            for error in found.values():
                assert isinstance(error, StoreDamaged)
                assert "has format 2, this AIOS knows up to 1" in error.message
                assert "newer" in error.hint
    assert file.read_bytes() == data
    file.write_bytes(before)
    for _ in run_system(filled, SETTINGS):
        good(filled)


def test_a_store_that_is_given_less_than_it_has(filled: Path) -> None:
    """store_bytes was lowered: what is there can be read, and made less."""
    for _ in run_system(filled, SETTINGS):
        with connect(filled) as aios:
            for number in range(60):
                aios.sto_put(f"large/{number}", large(number))
    for _ in run_system(filled, {**SETTINGS, "store_bytes": 1 << 25}):
        with connect(filled) as aios:
            assert aios.sto_get("large/59") == large(59)
            with pytest.raises(AiosError) as refused:
                aios.sto_put("more", b"x")
            assert refused.value.code == "store.full"
            for number in range(60):
                aios.sto_purge(f"large/{number}")
            aios.sto_put("more", b"x")
            aios.sto_purge("more")
        good(filled)


def test_a_second_system_on_a_home(filled: Path) -> None:
    for _ in run_system(filled, SETTINGS):
        second = System(filled, SETTINGS, detach=True)
        with pytest.raises(HomeBusy):
            second.ready()
        assert commands.run(filled, "start", "--detach").returncode == 75
        good(filled)
