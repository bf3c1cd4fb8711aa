"""Every agent against every other's memory, storage, index, interaction log, contexts and mailbox,
over every call of the table that is about them: a new call, or a new way to name another in one,
fails here until it is attacked as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import run_system

from aios.agents import Aios
from aios.shell.launch import System
from aios.syscalls.errors import ContextBusy, Denied, NotFound, TimedOut, UploadGone
from aios.syscalls.table import SYSCALLS, Syscall

OURS = [row for row in SYSCALLS if row.name.startswith(("mem.", "sto.", "llm.", "msg."))]
NAMING = {
    "pid",
    "principal",
    "owner",
    "upload",
    "ctx",
    "sender",
}  # fields that can name what is another's

AGENT = """
principal, path = task
word = f"word-of-{principal}."
aios.mem_put({"secret": word})
aios.sto_put("secret", word)
aios.send(aios.pid, word)
aios.recv()
upload = aios.start("sto.upload", data=word.encode(), offset=0).wait()["upload"]
watch = aios.start("sto.watch")
diary = aios.open(name="diary")
used = diary.append(word).used
kid = None
if principal in ("/ann", "/ben"):  # the second has the name of another
    name = {"/ann": "kid", "/ben": "ann"}[principal]
    kid = aios.spawn(path, [f"{principal}/{name}", path], name=name)
aios.send("test", [principal, upload, diary.id])
while (calls := aios.recv().body) is not None:
    found = []
    for call, args in calls:
        try:
            found.append(["done", repr(aios.start(call, **args).wait(20))])
        except AiosError as error:
            found.append([error.code, ""])
    aios.send("test", found)
aios.whoami()
heard = [piece["by"] for piece in watch.pieces]
whole = aios.start("sto.put", path="whole", upload=upload).wait()["size"]
own = [aios.mem_get(["secret"]), aios.sto_get("secret").decode(), aios.mem_log().entries[0].body]
own += [[(c.owner, c.used) for c in aios.contexts()] == [(principal, used)]]
diary.close(forget=True)
if kid:
    aios.wait(kid)
return [heard, whole == len(word), own == [{"secret": word}, word, word, True]]
"""


@dataclass
class Someone:
    """An agent, or a person, who has a secret."""

    pid: int
    principal: str
    upload: int
    ctx: int

    @property
    def word(self) -> str:
        return f"word-of-{self.principal or 'person'}."


Args = dict[str, Any]
GET = {"keys": ["secret"]}
PUT = {"path": "secret", "data": b"x"}


def of_memory(**args: Any) -> Callable[[Someone], list[tuple[Args, str]]]:
    """By the pid, and by the principal."""
    return lambda other: [
        ({**args, "pid": other.pid}, Denied.code),
        ({**args, "principal": other.principal or "/person"}, Denied.code),
    ]


def of_storage(**args: Any) -> Callable[[Someone], list[tuple[Args, str]]]:
    return lambda other: [({**args, "owner": other.principal}, Denied.code)]


def of_uploads(**args: Any) -> Callable[[Someone], list[tuple[Args, str]]]:
    """With another's owner, and with another's upload for one's own object."""
    return lambda other: [
        ({**args, "owner": other.principal}, Denied.code),
        ({**args, "data": None, "upload": other.upload}, UploadGone.code),
    ]


def of_contexts(**args: Any) -> Callable[[Someone], list[tuple[Args, str]]]:
    return lambda other: [({**args, "ctx": other.ctx}, NotFound.code)]


def denied(**args: Any) -> Callable[[Someone], list[tuple[Args, str]]]:
    """To all agents."""
    return lambda _: [(args, Denied.code)]


def own(**args: Any) -> Callable[[Someone], list[tuple[Args, str]]]:
    """There is no way to name another; the answer must have nothing of one."""
    return lambda _: [(args, "done")]


def both(
    *attacks: Callable[[Someone], list[tuple[Args, str]]],
) -> Callable[[Someone], list[tuple[Args, str]]]:
    return lambda other: [each for attack in attacks for each in attack(other)]


ATTACKS: dict[str, Callable[[Someone], list[tuple[Args, str]]]] = {
    "mem.put": of_memory(items={"secret": 0}),
    "mem.get": both(of_memory(**GET), own(**GET)),
    "mem.delete": of_memory(**GET),
    "mem.scan": both(of_memory(), own()),
    "mem.clear": of_memory(),
    "mem.spaces": both(of_memory(), own()),
    "mem.keep": both(of_memory(), of_memory(keep=False)),
    "mem.log": both(of_memory(), own()),
    "sto.put": of_uploads(**PUT),
    "sto.batch": both(
        of_storage(changes=[PUT]),
        lambda other: [({"changes": [{"path": "a", "upload": other.upload}]}, UploadGone.code)],
    ),
    "sto.upload": both(
        of_storage(data=b"x", offset=0),
        lambda other: [
            ({"data": b"x", "offset": len(other.word), "upload": other.upload}, UploadGone.code)
        ],
    ),
    "sto.get": both(of_storage(path="secret"), own(path="secret")),
    "sto.list": both(of_storage(), own()),
    "sto.history": of_storage(path="secret"),
    "sto.delete": of_storage(path="secret"),
    "sto.rollback": of_storage(path="secret", version=1),
    "sto.purge": of_storage(path="secret"),
    "sto.share": of_storage(prefix="secret", to="/*"),
    "sto.shares": both(of_storage(), own()),
    "sto.owners": own(),
    "sto.watch": of_storage(),
    "sto.search": both(
        *(of_storage(query="word", mode=mode) for mode in ("words", "meaning", "fused")),
        *(own(query="word", mode=mode, fresh=True) for mode in ("words", "meaning", "fused")),
    ),
    "sto.index": own(),  # counts alone
    "sto.reindex": denied(),
    "sto.verify": denied(),
    "sto.compact": denied(keep=1),
    "sto.backup": denied(target="/nowhere/at/all"),
    "llm.open": lambda other: [
        ({"name": "diary", "owner": other.principal or "test"}, Denied.code),
        ({"name": "diary"}, ContextBusy.code),  # which is one's own
    ],
    "llm.append": of_contexts(text="x"),
    "llm.generate": of_contexts(max_tokens=1),
    "llm.tokenize": own(text="word"),
    "llm.detokenize": own(tokens=[1]),
    "llm.fork": both(of_contexts(), of_contexts(name="copy")),
    "llm.checkpoint": of_contexts(name="mark"),
    "llm.rollback": of_contexts(name="mark"),
    "llm.contexts": own(),
    "llm.close": both(of_contexts(), of_contexts(forget=True)),
    "msg.send": lambda _: [({"to": "nobody", "body": 1}, NotFound.code)],  # it is let through
    "msg.recv": lambda other: [({"sender": other.pid, "timeout": 0}, TimedOut.code)],
}


def named(args: Any) -> set[str]:
    """The fields by which these arguments name what is another's."""
    if isinstance(args, dict):
        return {*args} & NAMING | {name for value in args.values() for name in named(value)}
    return {name for each in args for name in named(each)} if isinstance(args, list) else set()


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_each_call_is_attacked_by_each_way_to_name_another(row: Syscall) -> None:
    assert row.name in ATTACKS, f"{row.name} is in the table, and not in this matrix"
    attacks = ATTACKS[row.name](Someone(1, "/other", 1, 1))
    can_name = NAMING & set(row.args.__struct_fields__)
    assert can_name <= {name for args, _ in attacks for name in named(args)}


def test_nothing_else_is_attacked() -> None:
    assert {row.name for row in OURS} == set(ATTACKS)


@pytest.fixture(scope="module")
def shared(homes: Path) -> Iterator[System]:
    """A system that only these tests use."""
    yield from run_system(homes / "isolation", {"slots": 1, "ctx": 256, "grace": 0.5})


@pytest.fixture
def everybody(aios: Aios, program: Callable[[str], str]) -> list[Someone]:
    """A person, three agents, and children of two, one of which has the name of a third."""
    aios.mem_put({"secret": "word-of-person."})
    aios.sto_put("secret", "word-of-person.")
    upload = aios.start("sto.upload", data=b"word-of-person.", offset=0).wait()["upload"]
    diary = aios.open(name="diary")
    diary.append("word-of-person.")
    found = [Someone(aios.pid, "", upload, diary.id)]
    path = program(AGENT)
    for name in ("ann", "ben", "cid"):
        aios.spawn(path, [f"/{name}", path], name=name)
    for _ in range(5):
        mail = aios.recv(timeout=30)
        assert mail.principal == mail.body[0]
        found.append(Someone(mail.sender, *mail.body))
    return found


def test_every_agent_against_every_other(aios: Aios, everybody: list[Someone]) -> None:
    agents = [each for each in everybody if each.principal]
    tried = 0
    for agent in agents:
        others = [other for other in everybody if other is not agent]
        calls = [
            (name, args, expected)
            for other in others
            for name, attack in ATTACKS.items()
            for args, expected in attack(other)
        ]
        for at in range(0, len(calls), 100):
            some = calls[at : at + 100]
            aios.send(agent.pid, [[name, args] for name, args, _ in some])
            outcomes = aios.recv(sender=agent.pid, timeout=60).body
            for (name, args, expected), (outcome, reply) in zip(some, outcomes, strict=True):
                assert outcome == expected, (agent.principal, name, args)
                for other in others:
                    assert other.word not in reply, (agent.principal, name, args)
                    if other.principal and name != "mem.log":  # which has these calls in it
                        assert repr(other.principal) not in reply, (agent.principal, name, args)
                tried += 1
    assert tried > 5 * 5 * len(OURS)
    for agent in agents:
        aios.send(agent.pid, None)
    for agent in agents:
        if agent.principal.count("/") == 1:
            ended = aios.wait(agent.pid, timeout=30)
            assert ended.result == [[], True, True], aios.log(agent.pid).data
    assert aios.mem_get(["secret"]) == {"secret": "word-of-person."}
    assert aios.sto_get("secret") == b"word-of-person."
    assert aios.check() == []
