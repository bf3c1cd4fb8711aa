"""The log of what agents generated, sent and received."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Boot
from helpers import result_of

from aios.agents import Aios, connect
from aios.syscalls.errors import NotFound

Program = Callable[[str], str]


def test_the_kernel_logs_generations_and_messages(aios: Aios, program: Program) -> None:
    body = """
aios.generate("Say yes.", max_tokens=4).text
with aios.open("Be brief.") as context:
    context.generate([{"role": "user", "content": "w" * 100}], max_tokens=3).text
aios.recv()
aios.send("test", {"n": "x" * 9000})
try:
    aios.generate("w " * 5000).text
except AiosError:
    pass
page = aios.mem_log()
return [[[e.turn, e.kind] for e in page.entries], page.after]
"""
    pid = aios.spawn(program(body), name="logged")
    aios.send(pid, ["hello"])
    result = aios.wait(pid, timeout=60).result
    kinds = ["generation", "generation", "received", "sent"]
    assert result == [[[turn, kind] for turn, kind in enumerate(kinds, start=1)], None]
    entries = aios.mem_log(pid=pid).entries
    yes, brief, got, sent = entries
    assert [(m.role, m.content) for m in yes.prompt][-1] == ("user", "Say yes.")  # type: ignore[union-attr]
    assert yes.answer
    assert (yes.finish, yes.usage.completion) == ("length", 4)  # type: ignore[union-attr]
    assert [m.role for m in brief.prompt] == ["system", "user"]  # type: ignore[union-attr]
    assert (got.peer, got.name, got.body) == (aios.pid, "test", ["hello"])
    assert (sent.peer, sent.cut) == (aios.pid, {"body": 9008})
    assert len(sent.body) == 4096
    assert [e.time for e in entries] == sorted(e.time for e in entries)
    aios.recv(timeout=60)


def test_the_log_outlives_its_agent_and_is_paged(aios: Aios, program: Program) -> None:
    body = "for _ in range(5):\n    aios.send(aios.pid, _)\n    aios.recv()"
    for _ in range(2):
        result_of(aios, program(body), name="chatty")
    first = aios.mem_log(principal="/chatty", limit=7)
    rest = aios.mem_log(principal="/chatty", limit=30, after=first.after)
    assert [len(first.entries), len(rest.entries), rest.after] == [7, 13, None]
    every = first.entries + rest.entries
    assert [e.turn for e in every] == [*range(1, 11), *range(1, 11)]
    newest = aios.mem_log(principal="/chatty", back=True, limit=3)
    assert newest.entries == every[:-4:-1]
    older = aios.mem_log(principal="/chatty", back=True, limit=20, after=newest.after)
    assert newest.entries + older.entries == every[::-1]


def test_old_entries_and_old_logs_go(boot: Boot, program: Program) -> None:
    with connect(boot(log_bytes=4096, logs=2).home, "test") as aios:
        body = "for n in range(100):\n    aios.send(aios.pid, 'x' * 100)\n    aios.recv()"
        for number in range(4):
            result_of(aios, program(body), name=f"a{number}")
        page = aios.mem_log(principal="/a3", limit=256)
        assert [page.entries[-1].turn, page.after] == [200, None]
        assert 10 < len(page.entries) < 40
        for gone in ("/a0", "/a1"):
            with pytest.raises(NotFound):
                aios.mem_log(principal=gone)
        assert aios.mem_log(principal="/a2").entries
        assert aios.check() == []
