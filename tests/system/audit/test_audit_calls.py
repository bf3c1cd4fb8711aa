"""The records of system calls, on a real system."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import msgpack
import pytest
from audit_logs import read_records
from conftest import Boot, eventually
from helpers import kill_kernel
from raw import Raw
from turns import Turns

from aios.agents import connect
from aios.kernel.audit.details import DESCRIBED, details
from aios.kernel.audit.recorder import about
from aios.kernel.audit.segment import Record, begin, segments
from aios.kernel.audit.verify import verify
from aios.shell.launch import System
from aios.syscalls import acc, mem, sto
from aios.syscalls.base import Message
from aios.syscalls.errors import AiosError, Denied, NotFound
from aios.syscalls.proc import SandboxGrants, Spawn
from aios.syscalls.rules import Manifest
from aios.syscalls.wire import DONE, FAILED, Receipt

SECRET = "the-password-is-hunter2"


def of(home: Path, pid: int) -> list[Record]:
    return [record for record in read_records(home) if record.pid == pid and record.kind != "note"]


def told(records: list[Record]) -> list[tuple[str, ...]]:
    return [(r.kind, r.call, r.object, r.result) for r in records]


def test_a_change_is_an_intent_and_an_outcome_a_read_is_one_record(system: System) -> None:
    with connect(system.home, "ann") as aios:
        aios.mem_put({"k": 1}, space="notes")
        aios.mem_get(["k"], space="notes")
        with pytest.raises(NotFound):
            aios.kill(99999)
        records = of(system.home, aios.pid)
    assert told(records) == [
        ("read", "hello", "name=ann version=1", ""),
        ("intent", "mem.put", "space=notes items=k", ""),
        ("outcome", "mem.put", "", "ok"),
        ("read", "mem.get", "space=notes keys=k", ""),
        ("intent", "proc.kill", "pid=99999 signal=TERM", ""),
        ("outcome", "proc.kill", "", "not_found"),
    ]
    assert records[2].intent == records[1].sequence
    assert records[5].intent == records[4].sequence
    args = msgpack.packb({"items": {"k": 1}, "space": "notes", "ack": "durable"})
    assert records[1].args == sha256(args).digest()
    walls = [record.wall for record in records]
    assert walls == sorted(walls)


def test_what_agents_may_not_is_recorded(system: System, program: Callable[[str], str]) -> None:
    path = program("try:\n    aios.stop()\nexcept AiosError as error:\n    return error.code")
    with connect(system.home) as aios:
        pid = aios.spawn(path, name="climber")
        assert aios.wait(pid).result == Denied.code
        [denied] = [r for r in of(system.home, pid) if r.kind == "denied"]
        notes = [r.call for r in read_records(system.home) if r.kind == "note" and r.pid == pid]
    assert (denied.call, denied.result, denied.principal) == (
        "kernel.stop",
        Denied.code,
        "/climber",
    )
    assert notes[0] == "process.started"
    assert notes[-1] == "process.ended"


def test_what_is_no_call_is_recorded(system: System) -> None:
    with Raw(system.home) as raw:
        raw.send(b"\xc1 no msgpack")
        raw.reply()
        raw.error("no.such.call", x=1)
        raw.error("mem.put", space=3)
        assert told(of(system.home, raw.pid))[1:] == [
            ("denied", "", f"os_pid={os.getpid()}", "call.malformed"),
            ("denied", "no.such.call", f"os_pid={os.getpid()}", "call.unknown"),
            ("denied", "mem.put", f"os_pid={os.getpid()}", "call.malformed"),
        ]
    with Raw(system.home, hello=False) as raw:
        raw.error("hello", version=1, token=b"x" * 32)
    said = [r for r in read_records(system.home) if (r.pid, r.call) == (0, "hello")][-1]
    assert (said.kind, said.result) == ("denied", "hello.token")


def test_what_is_said_is_not_in_the_log(system: System, program: Callable[[str], str]) -> None:
    with connect(system.home) as aios:
        aios.mem_put({"k": SECRET})
        aios.send(aios.pid, SECRET)
        aios.recv()
        aios.generate(SECRET, max_tokens=1).result()
        pid = aios.spawn(program("return task"), SECRET)
        assert aios.wait(pid).result == SECRET
        aios.sto_put("a", SECRET.encode())
        aios.sto_purge("a")
    for _, path in segments(system.home / "audit"):
        assert SECRET.encode() not in path.read_bytes()


def test_what_is_changed_of_who_may_do_what_is_there_to_read(
    system: System, program: Callable[[str], str]
) -> None:
    deny = [{"right": "sto.write", "on": ["/team/**"], "tainted": ["msg:/web"]}]
    with connect(system.home) as aios:
        aios.set_group("team", {"members": ["/ann"], "allow": ["llm", "msg /x"], "deny": deny})
        aios.set_group("team", {"allow": [f"sto.read /{n:0100}" for n in range(100)]})
        aios.set_group("team", None)
        number = aios.grant("/ann", "tool", "pay", args={"to": "x@*"}, seconds=60)
        aios.revoke(number)
        pid = aios.spawn(
            program("aios.recv()"), SECRET, manifest={"allow": ["msg"]}, limits={"tokens": 7},
        )  # fmt: skip
        aios.limits(pid, {"tokens": 5, "wall": None})
        aios.kill(pid, "KILL")
        records = list(read_records(system.home))
    intents = {r.sequence: r.call for r in records if r.pid == aios.pid and r.kind == "intent"}
    notes = [r for r in records if r.pid == aios.pid and r.kind == "note"]
    assert all(intents[note.intent] == note.call for note in notes)
    said = [note.object for note in notes]
    assert said[0] == (
        "[members /ann] [deny sto.write on /team/**, tainted by msg:/web] [allow llm] "
        "[allow msg /x]"
    )
    last = said.index("[removed]")
    assert all(f"allow sto.read /{n:0100}" in "".join(said[1:last]) for n in range(100))
    assert said[last + 1] == "[tool on pay, to like x@*] [seconds=60.0]"
    assert said[last + 2].startswith("[allow msg] [limits tokens=7]")
    assert said[last + 3] == "[limits tokens=5 wall=None]"
    assert not any(SECRET in each for each in said)


def test_what_an_answer_grants_is_there_to_read(
    system: System, program: Callable[[str], str]
) -> None:
    with connect(system.home) as aios:
        questions = aios.questions()
        asker = aios.spawn(program("aios.mem_put({'a': 1})"), name="eve", manifest={"ask": ["mem"]})
        question = next(questions)
        aios.answer(question.id, "always")
        aios.wait(asker)
        records = [
            r for r in read_records(system.home) if (r.pid, r.call) == (aios.pid, "acc.answer")
        ]
        aios.revoke(next(grant.id for grant in aios.grants() if grant.to == "/eve"))
    intent, note, outcome = records
    assert (intent.kind, intent.object) == ("intent", f"id={question.id} answer=always")
    assert (note.kind, note.object) == ("note", "[mem.write on /eve] [to /eve]")
    assert note.intent == outcome.intent == intent.sequence


def test_what_an_agent_changes_takes_few_records(
    system: System, program: Callable[[str], str]
) -> None:
    path = program("try:\n    aios.spawn('/none', manifest={'allow': task})\n"
                   "except AiosError as error:\n    return error.code")  # fmt: skip
    with connect(system.home) as aios:
        pid = aios.spawn(path, [f"sto.read /{n:0100}" for n in range(100)])
        aios.wait(pid)
    notes = [r.object for r in read_records(system.home) if (r.pid, r.call) == (pid, "proc.spawn")]
    assert [len(note) for note in notes[1:3]] == [600, 600]
    assert notes[3] == "... and 10699 bytes more"
    assert [len(each) for each in notes[4:]] == [0]  # the outcome


def test_long_names_are_cut_and_told_apart(system: System) -> None:
    with connect(system.home) as aios:
        for end in ("x", "y"):
            aios.mem_get(["k" * 399 + end])
        first, second = of(system.home, aios.pid)[1:]
    assert first.object != second.object
    assert first.object[:120] == second.object[:120]
    assert len(first.object) < 200


def test_every_final_reply_can_have_a_receipt(system: System) -> None:
    receipts: list[Receipt] = []
    with connect(system.home, receipts=True) as aios:
        pending = [aios.start("mem.put", items={f"k{n}": n}) for n in range(20)]
        for call in pending:
            call.wait()
            assert call.receipt is not None
            receipts.append(call.receipt)
        aios.generate("Hi", max_tokens=2).result()
        assert aios.receipt is not None
        receipts.append(aios.receipt)
        with pytest.raises(AiosError):
            aios.start("no.such.call").wait()
        receipts.append(aios.receipt)
        records = {record.sequence: record for record in read_records(system.home)}
    assert [records[sequence].kind for sequence, _ in receipts] == [*["outcome"] * 21, "denied"]
    assert len(set(receipts)) == 22
    assert verify(system.home / "audit", receipts=receipts).problems == []
    with connect(system.home) as aios:
        aios.whoami()
        assert aios.receipt is None


def test_a_receipt_is_the_fourth_element_of_a_reply(system: System) -> None:
    with Raw(system.home) as raw:
        for name, kind in (("proc.whoami", DONE), ("no.such.call", FAILED)):
            raw.send(msgpack.packb([70 + kind, name, {}, 0, True]))
            call_id, found, _, (sequence, head) = msgpack.unpackb(raw.socket.recv())
            assert (call_id, found, len(head)) == (70 + kind, kind, 32)
            assert verify(system.home / "audit", receipts=[(sequence, head)]).problems == []


def test_receipts_hold_when_the_kernel_is_killed(boot: Boot) -> None:
    system = boot(slots=1)
    receipts: list[Receipt] = []
    with connect(system.home, receipts=True) as aios:
        for number in range(3):
            kernel = aios.status().os_pid
            calls = [aios.start("mem.put", items={f"k{n}": n}) for n in range(50)]
            calls += [aios.start("llm.open", name=f"c{number}{n}") for n in range(5)]
            answer = aios.generate("A story", max_tokens=4)
            calls.append(aios.start("proc.whoami"))
            calls[-1].wait()
            os.kill(kernel, signal.SIGKILL)  # right behind the last reply
            for call in calls:
                call.wait()
                receipts += [call.receipt] if call.receipt else []
            assert answer.result().tokens
        assert len(receipts) == 3 * 56
        assert aios.check() == []
    system.end()
    report = verify(system.home / "audit", receipts=receipts)
    assert (report.problems, report.receipts) == ([], 3 * 56)
    assert report.signed == report.records  # the end was signed
    begins = [record for record in read_records(system.home) if record.call == "kernel.begin"]
    assert len({record.boot for record in begins}) == 4
    assert [record.call for record in read_records(system.home)][-1] == "kernel.end"


def test_what_was_signed_while_the_system_ran_cannot_be_taken_away(boot: Boot) -> None:
    system = boot(slots=1)
    with connect(system.home) as aios:
        aios.mem_put({"k": 1})
        last = list(read_records(system.home))[-1].sequence
        eventually(lambda: verify(system.home / "audit").signed > last)
        [(_, path), *_] = segments(system.home / "audit")
        data = path.read_bytes()
        path.write_bytes(data[: begin(data, 0).at])
        kill_kernel(aios)
        aios.mem_put({"k": 1})
        notes = [record for record in read_records(system.home) if record.call == "audit.damaged"]
        assert "were signed, and are lost" in notes[0].object
        assert "were signed, and are lost" in aios.status().audit.trouble
    assert verify(system.home / "audit").problems
    assert "were signed, and are lost" in (system.home / "log" / "kernel.log").read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (sto.Put(path="a\n owner=/other", owner="/own"), r'owner=/own path="a\n owner=/other"'),
        (mem.GetItems(keys=["a", "b,c", 'd"']), r'space=main keys=a,"b,c","d\""'),
        (
            acc.Grant(to="/x to=/eve", right="mem", on=["a] [allow *"]),
            '[mem on "a] [allow *"] [seconds=None]',
        ),
        (Spawn("x", manifest=Manifest(allow=["mem a] [allow *"])), '[allow mem "a] [allow *"]'),
        (Spawn("x", reach=SandboxGrants(read=["/a] [allow *"])), '[reach read="/a] [allow *"]'),
    ],
)  # fmt: skip
def test_what_an_agent_chooses_is_not_read_as_more(args: Message, said: str) -> None:
    assert (details(args) if type(args) in DESCRIBED else about(args)) == said
    assert " to=/eve" not in about(args).replace(r'"/x to=/eve"', "")


def test_a_long_path_that_was_refused_pushes_out_nothing(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    told = {"call": "openat", "object": f"/{'a' * 4000}", "needs": "write"}
    with patch.object(turns.kernel.audit.coalescer, "add") as add:
        turns.kernel.events.publish("process", "refused", 1, **told)
    turns.close()
    said = add.call_args.args[0][5]
    assert said.startswith("call=openat object=/aaa") and said.endswith(" needs=write")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (Spawn("/bin/evil", contexts=list(range(100, 164)), name="nice"), "program=/bin/evil"),
        (sto.Delete(path="ledger", owner=f"/{'a' * 4000}"), "path=ledger"),
        (mem.GetItems(keys=["k" * 400] * 100, principal="/other"), "principal=/other"),
    ],
)
def test_no_field_pushes_out_another(args: Message, said: str) -> None:
    assert f" {said} " in f" {about(args)} "
    assert len(about(args).encode()) <= 160
