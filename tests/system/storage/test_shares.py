"""Objects are their owners': what others may, and what is shared with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Boot, run_system
from helpers import left_empty, result_of

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import LimitReached, NotFound

Program = Callable[[str], str]


@pytest.fixture(scope="module")
def shared(homes: Path) -> Iterator[System]:
    """A system that only these tests use."""
    yield from run_system(homes / "shares", {"slots": 1, "ctx": 256, "grace": 0.5})


@pytest.fixture
def storage(aios: Aios) -> Iterator[Aios]:
    yield from left_empty(aios)


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
    result_of(
        storage, program("aios.sto_put('d/a', b'1')\naios.sto_put('d2', b'1')"), name=giver[1:]
    )
    if mode == "none":
        storage.sto_share("d", "/taker", "write", owner=giver)
    storage.sto_share("d", "/taker", mode, owner=giver)
    body = TRY[TRY.index("found") :].replace(
        "aios.send('test', found)\naios.recv()", "return found"
    )
    for kind, forms in ACTS.items():
        task = {"others": [giver], "acts": [form.format(p="d/a", d="d/") for form in forms]}
        for _, act, outcome in result_of(storage, program(body), task, name="taker"):
            expected = ["done", "call.cancelled"] if kind in allowed else ["access.denied"]
            assert outcome in expected, (mode, act, outcome)
        task["acts"] = [form.format(p="d2", d="d2") for form in forms if "{p}" in form]
        for _, act, outcome in result_of(storage, program(body), task, name="taker"):
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
            found = [result_of(aios, read, name="ann"), result_of(aios, read, name="team"),
                     result_of(aios, below, name="team")]  # fmt: skip
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
    assert result_of(storage, path, name="reader") == [["", "", "/reader", "read"]]
    assert result_of(storage, path, name="other") == []


def test_what_one_shares_with_oneself_is_listed_once(storage: Aios, program: Program) -> None:
    path = program(
        "for to in ('/self', '/*'):\n    aios.sto_share('a', to)\n"
        "return [[g.prefix, g.to] for g in aios.sto_shares()]"
    )
    assert result_of(storage, path, name="self") == [["a", "/*"], ["a", "/self"]]


def test_an_agent_s_objects_are_there_when_it_comes_back(storage: Aios, program: Program) -> None:
    result_of(storage, program("aios.sto_put('a', b'kept')"), name="back")
    assert result_of(storage, program("return aios.sto_get('a')"), name="back") == b"kept"
    assert storage.sto_get("a", owner="/back") == b"kept"
    assert storage.sto_read("a", owner="/back").info.by == "/back"


def test_too_many_grants(storage: Aios) -> None:
    for number in range(256):
        storage.sto_share("a", f"/x{number}")
    with pytest.raises(LimitReached):
        storage.sto_share("a", "/more")
    storage.sto_share("a", "/x0", "write")
