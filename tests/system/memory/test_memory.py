"""Memory through the real kernel: agents' own spaces, their limits, their end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run as command
from conftest import Boot, eventually, on_tiny
from helpers import end, result_of

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, Conflict, LimitReached, Malformed, NotFound, StoreDamaged
from aios.syscalls.mem import MAX_KEY_BYTES, Memory

Program = Callable[[str], str]
PLAIN = {"n": None, "b": b"\x00\xff", "i": -(2**63), "f": 0.5, "l": [1, {"a": [True]}], "s": "é\0"}
IDLE = "aios.mem_put({'mine': task})\naios.recv()"


def own(aios: Aios, pid: int) -> Memory:
    """Once the agent has written."""
    found: list[Memory] = eventually(lambda: [m for m in aios.mem_spaces(pid=pid) if m.spaces])
    return found[0]


# --- items ----------------------------------------------------------------------------------------


def test_what_is_put_comes_back_as_it_was(aios: Aios, program: Program) -> None:
    body = (
        "aios.mem_put(task)\naios.mem_put({'s': 'other'}, space='two')\n"
        "return [aios.mem_get([*task, 'none']), aios.mem_get(['s'], space='two'),"
        " aios.mem_delete(['n', 'none']), aios.mem_get(['n'])]"
    )
    assert result_of(aios, program(body), PLAIN) == [PLAIN, {"s": "other"}, 1, {}]


def test_pages_in_order_of_keys_both_ways(aios: Aios) -> None:
    items = {f"k{number:04}": "x" * 1000 for number in range(600)} | {"é": 1, "z": 2}
    for at in range(0, 600, 50):
        aios.mem_put(dict(list(items.items())[at : at + 50]))
    aios.mem_put({"é": 1, "z": 2, "k": 3, "k0000": "new"})
    items |= {"k": 3, "k0000": "new"}
    ordered = sorted(items.items(), key=lambda item: item[0].encode())
    assert list(aios.mem_items()) == ordered
    assert list(aios.mem_items(back=True, limit=7)) == ordered[::-1]
    assert list(aios.mem_items("k00", limit=10)) == [i for i in ordered if i[0].startswith("k00")]
    page = aios.mem_scan("k", after="k0598", limit=1)
    assert ([key for key, _ in page.items], page.after) == (["k0599"], None)
    assert aios.mem_get(list(items)) == items  # in as many replies as it takes
    aios.mem_clear()
    assert aios.mem_spaces(pid=aios.pid)[0].spaces == []


def test_what_was_asked_for_at_once_is_done_in_order(aios: Aios) -> None:
    """Reads see all writes that were asked for, or accepted, before them."""
    calls = []
    for number in range(100):
        ack = "accepted" if number % 3 else "durable"
        calls.append(aios.start("mem.put", items={"a": number, f"b{number % 7}": 1}, ack=ack))
        calls.append(aios.start("mem.get", keys=["a"]))
        if number % 10 == 9:
            calls.append(aios.start("mem.clear"))
            calls.append(aios.start("mem.scan"))
    found = [call.wait() for call in calls]
    assert [reply["items"]["a"] for reply in found if isinstance(reply.get("items"), dict)] == list(
        range(100)
    )
    assert [reply["items"] for reply in found if "damaged" in reply] == [[]] * 10
    assert aios.mem_get(["a"]) == {}


def test_accounting_is_exact(aios: Aios) -> None:
    aios.mem_put({"ab": b"x" * 100, "cd": b"y" * 50})
    aios.mem_put({"ab": b"x" * 10})
    aios.mem_put({"ef": None}, space="two")
    main, two = aios.mem_spaces(pid=aios.pid)[0].spaces
    assert (main.name, main.count, main.bytes) == ("main", 2, 2 + 12 + 2 + 52)
    assert (two.name, two.count, two.bytes) == ("two", 1, 3)
    aios.mem_delete(["ab", "ab", "cd"])
    aios.mem_clear("two")
    assert aios.mem_spaces(pid=aios.pid)[0].bytes == 0
    assert aios.check() == []


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ({"k" * (MAX_KEY_BYTES + 1): 1}, Malformed),
        ({"é" * (MAX_KEY_BYTES // 2 + 1): 1}, BadInput),
        ({"": 1}, Malformed),
        ({}, Malformed),
        ({"a": float("nan")}, Malformed),
    ],
)
def test_keys_and_values_that_cannot_be(
    aios: Aios, items: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        aios.mem_put(items)
    aios.mem_put({"k" * MAX_KEY_BYTES: 1})
    assert aios.mem_get(["k" * MAX_KEY_BYTES]) == {"k" * MAX_KEY_BYTES: 1}


def test_past_its_limit_nothing_changes_and_what_shrinks_goes(aios: Aios, program: Program) -> None:
    body = """
aios.mem_put({"a": "x" * 600, "b": 1})
try:
    aios.mem_put({"b": 2, "c": "y" * 600})
except AiosError as error:
    code = error.code
found = aios.mem_get(["a", "b", "c"])
aios.mem_put({"a": "x" * 500})
aios.mem_put({"c": "y" * 400})
return [code, found, aios.mem_spaces()[0].bytes]
"""
    code, found, size = result_of(aios, program(body), limits={"mem_bytes": 1000})
    assert (code, found) == (LimitReached.code, {"a": "x" * 600, "b": 1})
    assert size == 1 + 503 + 1 + 1 + 1 + 403


def test_too_many_spaces(aios: Aios) -> None:
    with pytest.raises(LimitReached, match="64 spaces"):
        for number in range(65):
            aios.mem_put({"a": 1}, space=f"s{number}")
    aios.mem_delete(["a"], space="s0")  # an empty one is none
    aios.mem_put({"a": 1}, space="s64")


def test_a_damaged_value_is_told_and_can_be_replaced(boot: Boot) -> None:
    system = boot(mem_resident=0)
    with connect(system.home, "test") as aios:
        aios.mem_put({"a": "before", "b": "this one " * 20, "c": "after"}, principal="/w")
    system.end()
    path = system.home / "store" / "data.mdb"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"this one this", b"that one this"))
    again = System(system.home, on_tiny(system.home, slots=1, ctx=256, mem_resident=0), detach=True)
    again.ready()
    with connect(system.home, "test") as aios:
        with pytest.raises(StoreDamaged):
            aios.mem_get(["a", "b"], principal="/w")
        page = aios.mem_scan(principal="/w")
        assert (page.items, page.damaged) == ([("a", "before"), ("c", "after")], ["b"])
        with pytest.raises(StoreDamaged, match="b"):
            list(aios.mem_items(principal="/w"))
        listed = command(system.home, "mem", "list", "/w", "--json")
        assert (listed.returncode, json.loads(listed.stdout)) == (1, {"a": "before", "c": "after"})
        assert json.loads(listed.stderr)["message"] == "damaged values: b"
        aios.mem_put({"b": "new"}, principal="/w")
        assert aios.mem_get(["a", "b"], principal="/w") == {"a": "before", "b": "new"}
        assert aios.check() == []
    again.end()


def test_without_a_store_all_else_goes_on(homes: Path, program: Program) -> None:
    home = homes / "nostore"
    (home / "store").mkdir(parents=True)
    (home / "store" / "data.mdb").write_bytes(b"something else" * 1000)
    system = System(home, on_tiny(home, slots=1, ctx=256, grace=0.5), detach=True)
    system.ready()
    with connect(home, "test") as aios:
        for refused in (
            lambda: aios.mem_put({"a": 1}),
            lambda: aios.mem_put({"a": 1}, ack="accepted"),
            lambda: aios.mem_get(["a"]),
            lambda: aios.mem_delete(["a"]),
            aios.mem_clear,
            aios.mem_spaces,
        ):
            with pytest.raises(StoreDamaged, match="cannot open"):
                refused()
        body = "return aios.generate('Hi', max_tokens=2).finish"
        assert result_of(aios, program(body)) == "length"
        assert aios.check() == []
    system.end()


# --- RAM and back ---------------------------------------------------------------------------------


def test_what_is_used_least_leaves_ram_and_comes_back(boot: Boot) -> None:
    with connect(boot(mem_resident=5000).home, "test") as aios:
        items = {f"k{number}": f"{number} " * 100 for number in range(40)}
        aios.mem_put({"hot": "h" * 500})
        for key, value in items.items():
            aios.mem_put({key: value})
            assert aios.mem_get(["hot"]) == {"hot": "h" * 500}
        memory = aios.mem_spaces(pid=aios.pid)[0]
        assert 0 < memory.resident_bytes <= 5000
        assert memory.evicted > 0
        assert memory.fetched == 0  # what is in use never left
        assert aios.mem_get(list(items)) == items
        assert aios.mem_spaces(pid=aios.pid)[0].fetched > 20
        assert aios.check() == []


# --- whose ----------------------------------------------------------------------------------------

REACH = """
aios.mem_put({"secret": aios.pid})
aios.send(task, "ready")  # by pid: another client of that name may be about to go
task = aios.recv().body
seen = []
for pid in task:
    for act in ("mem_get(['secret'], pid=pid)", "mem_put({'secret': 0}, pid=pid)",
                "mem_delete(['secret'], pid=pid)", "mem_scan(pid=pid)", "mem_clear(pid=pid)",
                "mem_spaces(pid=pid)", "mem_keep(pid=pid)", "mem_log(pid=pid)",
                "mem_get(['secret'], principal=f'/agent{pid}')", "mem_log(principal='/one')"):
        try:
            eval("aios." + act)
            seen.append((pid, act))
        except AiosError as error:
            if error.code != "access.denied":
                seen.append((pid, act, error.code))
return [seen, aios.mem_get(["secret"]), list(aios.mem_items())]
"""


def test_every_agent_against_every_other(aios: Aios, program: Program) -> None:
    """Also those of one name and program: only what is one's own is reached."""
    path = program(REACH)
    pids = [aios.spawn(path, aios.pid, name=name) for name in ("one", "one", "two", "three")]
    for _ in pids:
        aios.recv(timeout=30)
    for pid in pids:
        aios.send(pid, [other for other in pids if other != pid])
    for pid in pids:
        assert aios.wait(pid, timeout=30).result == [[], {"secret": pid}, [["secret", pid]]], (
            aios.log(pid).data
        )


def test_a_person_reaches_every_agents_memory(aios: Aios, program: Program) -> None:
    pids = [aios.spawn(program(IDLE), number, name="idle") for number in range(2)]
    for number, pid in enumerate(pids):
        assert own(aios, pid).principal == "/idle"
        assert aios.mem_get(["mine"], pid=pid) == {"mine": number}
    assert {m.pid for m in aios.mem_spaces()} >= set(pids)
    for pid in pids:
        end(aios, pid)
        with pytest.raises(NotFound):
            aios.mem_get(["mine"], pid=pid)


# --- the end --------------------------------------------------------------------------------------


def test_memory_ends_with_its_agent_unless_it_is_kept(aios: Aios, program: Program) -> None:
    body = "before = aios.mem_get(['n'])\naios.mem_put({'n': task})\nreturn before"
    assert result_of(aios, program(body), 1, name="gone") == {}
    assert result_of(aios, program(body), 2, name="gone") == {}
    keep = body.replace("return", "aios.mem_keep()\nreturn")
    assert result_of(aios, program(keep), 1, name="kept") == {}
    assert result_of(aios, program(body), 2, name="kept") == {"n": 1}  # it stays kept
    assert result_of(aios, program(body), 3, name="kept") == {"n": 2}
    assert aios.mem_get(["n"], principal="/kept") == {"n": 3}
    aios.mem_keep(False, principal="/kept")
    with pytest.raises(NotFound):
        aios.mem_keep(False, principal="/kept")
    with pytest.raises(NotFound):
        aios.mem_clear(principal="/kept")
    assert result_of(aios, program(body), 4, name="kept") == {}
    assert aios.check() == []


def test_of_two_of_one_name_the_first_has_what_was_kept(aios: Aios, program: Program) -> None:
    aios.mem_put({"mine": "kept"}, principal="/twin")
    body = "seen = aios.mem_get(['mine'])\naios.send('test', seen)\naios.recv()"
    first = aios.spawn(program(body), name="twin")
    assert aios.recv(timeout=30).body == {"mine": "kept"}
    second = aios.spawn(program(body), name="twin")
    assert aios.recv(timeout=30).body == {}
    assert aios.mem_spaces(pid=second)[0].held_by == first
    assert aios.mem_spaces(pid=first)[0].held_by is None
    with pytest.raises(Conflict):
        aios.mem_keep(pid=second)
    end(aios, first)
    end(aios, second)
    assert aios.mem_get(["mine"], principal="/twin") == {"mine": "kept"}
    aios.mem_keep(False, principal="/twin")


def kill_kernel(aios: Aios) -> None:
    os.kill(aios.status().os_pid, signal.SIGKILL)
    aios.status()


def test_memory_survives_the_kernel_and_a_restart_if_kept(boot: Boot, program: Program) -> None:
    system = boot()
    with connect(system.home, "test") as aios:
        pid = aios.spawn(program(IDLE), "x", name="idle")
        before = own(aios, pid)
        lost = aios.spawn(program(IDLE), "y", name="lost")
        own(aios, lost)
        aios.mem_put({"k": 1}, principal="/kept")
        kill_kernel(aios)
        assert own(aios, pid).spaces == before.spaces
        assert aios.mem_get(["mine"], pid=pid) == {"mine": "x"}
        assert aios.mem_get(["k"], principal="/kept") == {"k": 1}
        aios.mem_keep(pid=pid)
        assert aios.check() == []
    system.end()
    again = System(system.home, on_tiny(system.home, slots=1, ctx=256), detach=True)
    again.ready()
    with connect(system.home, "test") as aios:
        assert [m.principal for m in aios.mem_spaces() if m.spaces] == ["/idle", "/kept"]
        assert aios.mem_get(["mine"], principal="/idle") == {"mine": "x"}
        with pytest.raises(NotFound):
            aios.mem_get(["mine"], principal="/lost")
        assert aios.check() == []
    again.end()
