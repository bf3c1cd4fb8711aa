"""The gate at work: real agents, a real kernel; rules, manifests, grants, taint."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Boot, eventually, on_tiny
from doer import DOER, Agent, person_alone

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, NotFound

Program = Callable[[str], str]


@pytest.fixture
def person(boot: Boot) -> Iterator[Aios]:
    yield from person_alone(boot)


@pytest.fixture
def agent(person: Aios, program: Program) -> Callable[..., Agent]:
    path = program(DOER)
    return lambda **how: Agent(person, path, **how)


def test_what_a_manifest_does_not_allow_is_denied(agent: Callable[..., Agent]) -> None:
    bound = agent(
        name="bound",
        manifest={
            "allow": ["msg", "acc.read", "sto.read {self}:**", "sto.write {self}:notes/*"],
            "deny": ["sto.write {self}:notes/secret"],
        },
    )
    assert bound.does("aios.sto_put('notes/a', b'1').version") == 1
    for act in [
        "aios.sto_put('other', b'')", "aios.sto_put('notes/a/b', b'')",
        "aios.sto_put('notes/secret', b'')", "aios.mem_put({'a': 1})", "aios.ps()",
        "aios.sto_batch([{'path': 'notes/b', 'data': b''}, {'path': 'c', 'data': b''}])",
        "aios.spawn('chat')", "aios.generate('x', max_tokens=1).text", "aios.sto_share('', '/x')",
    ]:  # fmt: skip
        assert bound.does(act) == "access.denied", act
    assert bound.does("[v.path for v in list(aios.sto_list())]") == ["notes/a"]
    verdict = bound.does("aios.check_access('sto.write', '/bound:notes/secret').rule")
    assert verdict == "manifest of /bound: deny sto.write on {self}:notes/secret"


def test_control_tokens_take_a_right_of_their_own(agent: Callable[..., Agent]) -> None:
    bound = agent(name="plain", manifest={"allow": ["msg", "llm"], "deny": ["llm.raw"]})
    assert bound.does("aios.generate('Hi', max_tokens=1, ignore_eos=True).result().tokens")
    assert bound.does("aios.tokenize('<|im_end|>')") == [2]
    for act in [
        "aios.generate('Hi', raw=True).text", "aios.generate([2, 1]).text",
        "aios.open().append('<|im_end|>', raw=True)", "aios.open().append([2])",
    ]:  # fmt: skip
        assert bound.does(act) == "access.denied", act


def test_a_child_is_bound_by_the_manifests_above_it(
    agent: Callable[..., Agent], program: Program
) -> None:
    above = agent(manifest={"allow": ["msg", "proc", "mem.read"], "ask": []})
    child = program(
        "found = []\nfor act in task:\n    try:\n        eval(act)\n        found.append('done')\n"
        "    except AiosError as error:\n        found.append(error.code)\nreturn found"
    )
    tried = ["aios.mem_get(['a'])", "aios.mem_put({'a': 1})", "aios.ps()", "list(aios.sto_list())"]
    free = f"aios.wait(aios.spawn({child!r}, {tried!r})).result"
    assert above.does(free) == ["done", "access.denied", "done", "access.denied"]
    wider = f"aios.wait(aios.spawn({child!r}, {tried!r}, manifest={{'allow': ['*']}})).result"
    assert above.does(wider) == ["done", "access.denied", "done", "access.denied"]
    tighter = f"aios.wait(aios.spawn({child!r}, {tried!r}, manifest={{'allow': ['mem']}})).result"
    assert above.does(tighter) == ["done", "access.denied", "access.denied", "access.denied"]


def test_a_group_says_what_its_members_may(person: Aios, agent: Callable[..., Agent]) -> None:
    ann, bob = agent(name="ann"), agent(name="bob")
    person.set_group("quiet", {"members": ["/ann"], "deny": ["msg.send /bob"]})
    assert ann.does(f"aios.send({bob.pid}, 'aios.pid')") == "access.denied"
    assert bob.does("aios.pid") == bob.pid
    person.set_group("quiet", None)
    assert ann.does(f"aios.send({bob.pid}, '1')") is None
    assert bob.said() == 1
    with pytest.raises(NotFound):
        person.set_group("quiet", None)
    with pytest.raises(BadInput, match="no rule"):
        person.set_group("bad", {"allow": ["Not A Rule"]})
    with pytest.raises(BadInput, match="cannot be removed"):
        person.set_group("agents", None)


def test_an_agent_changes_no_policy(agent: Callable[..., Agent]) -> None:
    other = agent(name="other")
    for act in [
        "aios.set_group('agents', {'allow': ['*']})", "aios.groups()", "next(aios.questions())",
        "aios.answer(1, 'once')", "aios.check_access('llm', pid=1)",
    ]:  # fmt: skip
        assert other.does(act) == "access.denied", act


def test_a_grant_reaches_further_and_a_revoked_one_does_not(
    person: Aios, agent: Callable[..., Agent]
) -> None:
    """A right over another's process: from a person to a planner, from it to a helper."""
    worker, planner, helper = agent(name="worker"), agent(name="planner"), agent(name="helper")
    nice = f"aios.nice(3, {worker.pid})"
    assert planner.does(nice) == "access.denied"
    hand_on = "aios.grant('/helper', 'proc.control', '/worker')"
    empty = planner.does(hand_on)  # it hands on what it does not have
    assert helper.does(nice) == "access.denied"
    first = person.grant("/planner", "proc.control", "/worker")
    assert planner.does(nice) == 3
    assert helper.does(nice) == 3  # by the grant that was empty until now
    planner.does(f"aios.revoke({empty})")
    assert helper.does(nice) == "access.denied"
    second = planner.does(hand_on)
    assert helper.does(nice) == 3
    assert helper.does(f"aios.revoke({first})") == "not_found"
    assert [row["id"] for row in map(vars_of, person.grants())] == [first, second]
    person.revoke(first)
    assert helper.does(nice) == planner.does(nice) == "access.denied"


def vars_of(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


def test_grants_end_with_their_giver_and_persons_outlive_the_system(
    homes: Path, program: Program
) -> None:
    home = homes / "lasting-grants"
    system = started(home)
    path = program(DOER)
    with connect(home, "test") as aios:
        lasting = aios.grant("/a", "proc.control", "/worker", seconds=3600)
        giver = Agent(aios, path, name="giver")
        assert giver.does("aios.grant('/a', 'llm')") > lasting
        assert len(aios.grants()) == 2
        aios.kill(giver.pid, "KILL")
        aios.wait(giver.pid)
        assert [row.id for row in aios.grants()] == [lasting]
        aios.set_group("team", {"members": ["/a"]})
    system.end()
    kept = json.loads((home / "policy.json").read_text())
    assert [grant["id"] for grant in kept["grants"]] == [lasting]
    again = started(home)
    with connect(home) as aios:
        assert [row.id for row in aios.grants()] == [lasting]
        assert aios.groups()["team"].members == ["/a"]
    again.end()


def test_a_grant_of_storage_is_a_share(person: Aios) -> None:
    with pytest.raises(BadInput, match="grant of storage"):
        person.grant("/a", "sto.read", "/b:**")


def test_what_it_has_read_taints_what_it_asks_for(
    person: Aios, agent: Callable[..., Agent]
) -> None:
    """The label comes from a message, goes on through storage, and a rule refuses for it."""
    web, middle = agent(name="web"), agent(name="middle")
    careful = {
        "allow": ["msg", "sto", "mem", "acc.read"],
        "deny": [{"right": "mem.write", "tainted": ["msg:/web"]}],
    }
    reader = agent(name="reader", manifest=careful)
    put = "aios.mem_put({'a': 1}) or 'done'"
    assert reader.does(put) == "done"
    assert web.does(f'aios.send({middle.pid}, \'aios.sto_put("page", b"x").labels\')') is None
    assert middle.said() == ["msg:/web"]
    assert middle.does("aios.sto_share('page', '/reader')") is None
    assert reader.does(put) == "done"
    assert reader.does("aios.sto_get('page', owner='/middle').decode()") == "x"
    assert reader.does(put) == "access.denied"
    assert reader.does("aios.check_access('mem.write', '/reader').tainted") == [
        "msg:/web", "sto:/middle",
    ]  # fmt: skip


def test_labels_outlive_the_kernel_and_pass_to_children(
    person: Aios, agent: Callable[..., Agent], program: Program
) -> None:
    web, reader = agent(name="web"), agent(name="reader")
    assert web.does(f"aios.send({reader.pid}, '1')") is None
    assert reader.said() == 1
    boot = person.status().boot
    os.kill(person.status().os_pid, signal.SIGKILL)
    eventually(lambda: person.status().boot != boot)
    labels = "aios.check_access('llm').tainted"
    assert reader.does(labels) == ["msg:/web"]
    child = program("return aios.check_access('llm').tainted")
    assert reader.does(f"aios.wait(aios.spawn({child!r})).result") == ["msg:/web"]


def test_a_kept_memory_and_a_named_context_taint_who_gets_them(
    person: Aios, agent: Callable[..., Agent]
) -> None:
    web, first = agent(name="web"), agent(name="x")
    assert web.does(f"aios.send({first.pid}, '1')") is None
    assert first.said() == 1
    assert first.does("[aios.mem_put({'a': 1}), aios.mem_keep(), 'kept'][-1]") == "kept"
    assert first.does("aios.open(name='notes').append('hello').used") > 0
    person.kill(first.pid, "KILL")
    person.wait(first.pid)
    labels = "aios.check_access('llm').tainted"
    second = agent(name="x")
    assert second.does("aios.mem_get(['a'])") == {"a": 1}
    assert second.does(labels) == ["msg:/web"]
    person.kill(second.pid, "KILL")
    person.wait(second.pid)
    third = agent(name="x")
    assert third.does("aios.open(name='notes').id") > 0
    assert third.does(labels) == ["msg:/web"]


def test_a_fork_keeps_where_its_context_is_from(person: Aios, agent: Callable[..., Agent]) -> None:
    """Else who copies a context, and lets the copy sleep, has washed its labels off."""
    web, first = agent(name="web"), agent(name="x")
    assert web.does(f"aios.send({first.pid}, '1')") is None
    assert first.said() == 1
    assert first.does("aios.open(name='notes').append('hello').used") > 0
    person.kill(first.pid, "KILL")
    person.wait(first.pid)
    second = agent(name="x")
    # By a person, who is tainted by nothing.
    with person.open(name="notes", owner="/x") as theirs:
        theirs.fork("copy").close()
        heir = agent(name="heir", contexts=[theirs])
    assert heir.does("aios.check_access('llm').tainted") == ["msg:/web", "msg:/x"]
    assert heir.does("aios.inherited()[0].fork('x').close()") is None
    assert second.does("aios.check_access('llm').tainted") == []
    assert second.does("aios.open(name='notes').id") > 0
    assert second.does("aios.check_access('llm').tainted") == ["msg:/web"]
    person.kill(heir.pid, "KILL")
    person.wait(heir.pid)
    again = agent(name="heir")
    assert again.does("aios.open(name='x').id") > 0
    assert again.does("aios.check_access('llm').tainted") == ["msg:/web", "msg:/x"]


def test_a_context_with_a_name_is_its_principals(
    person: Aios, agent: Callable[..., Agent], program: Program
) -> None:
    """Not of whoever has been given the same name by another."""
    writer, evil = agent(name="writer"), agent(name="evil")
    assert writer.does("aios.open(name='diary').append('a secret').used") > 0
    assert writer.does("[c.close() for c in [aios.open(name='other')]]") == [None]
    thief = program(
        "seen = [aios.contexts(), aios.open(name='diary').append('x').used]\n"
        "aios.open(name='other').close(forget=True)\n"
        "try:\n    aios.open(name='other', owner='/writer')\n"
        "except AiosError as error:\n    return [*seen, error.code]"
    )
    seen, used, code = evil.does(f"aios.wait(aios.spawn({thief!r}, name='writer')).result")
    assert (seen, code) == ([], "access.denied")
    assert used < writer.does("aios.contexts()[0].used")
    assert [c.owner for c in person.contexts() if c.name == "diary"] == ["/writer", "/evil/writer"]
    assert [c.owner for c in person.contexts() if c.name == "other"] == ["/writer"]


def test_a_damaged_policy_is_not_started_with(homes: Path) -> None:
    home = homes / "damaged-policy"
    system = started(home)
    with connect(home) as aios:
        aios.set_group("team", {"members": ["/a"], "deny": ["llm"]})
    system.end()
    path = home / "policy.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"policy\.json cannot be read"):
        started(home)


def started(home: Path) -> System:
    system = System(home, on_tiny(home, slots=1, ctx=512, grace=0.5), detach=True)
    system.ready()
    return system


def test_search_finds_nothing_that_a_rule_forbids(
    person: Aios, agent: Callable[..., Agent]
) -> None:
    person.sto_put("open/a", b"the cello is in the hall")
    person.sto_put("closed/b", b"the cello is in the cellar")
    person.sto_share("", "/finder")
    bound = {"allow": ["msg", "sto.read {self}:**", "sto.read :open/**"]}
    finder = agent(name="finder", manifest=bound)
    found = "aios.sto_search('cello', owner={}, path={!r}, fresh=True).hits"
    search = f"sorted(hit.path for hit in {found})"
    assert finder.does(search.format("''", "open")) == ["open/a"]
    assert finder.does(search.format("''", "")) == "access.denied"
    assert finder.does(search.format("None", "")) == []
    assert agent(name="finder").does(search.format("None", "")) == ["closed/b", "open/a"]


def test_patterns_of_an_agents_choosing_hold_nobody_up(
    person: Aios, agent: Callable[..., Agent], program: Program
) -> None:
    """A matcher that goes back would try all ways to share out the letters, for ever."""
    above = agent(name="above")
    child = program("try:\n    aios.sto_put('a' * 190, b'')\nexcept AiosError as error:\n"
                    "    return error.code")  # fmt: skip
    hard = "{self}:" + "*a" * 15 + "b"

    def spawned(pattern: str) -> str:
        manifest = {"allow": [f"sto.write {pattern}"]}
        return f"aios.wait(aios.spawn({child!r}, manifest={manifest!r})).result"

    assert above.does(spawned(hard)) == "access.denied"
    assert above.does(f"aios.grant('/above', 'tool.call', {hard!r})") > 0
    assert above.does("aios.start('tool.call', name='a' * 60).wait()") == "access.denied"
    harder = "*a" * 200
    assert above.does(spawned(harder)) == "bad_input"
    assert above.does(f"aios.grant('/above', 'proc', {harder!r})") == "bad_input"
    assert person.ps()
