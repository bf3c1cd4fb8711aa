"""Messages between agents: order, bounds, who is served first, and timeouts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest

from aios.kernel.access.approvals import Approvals
from aios.kernel.access.gate import Gate
from aios.kernel.access.grants import Grants
from aios.kernel.audit.checkpoint import Signer
from aios.kernel.audit.log import AuditLog
from aios.kernel.audit.recorder import AuditRecorder
from aios.kernel.entry.call import Call, Session
from aios.kernel.entry.sessions import Sessions
from aios.kernel.entry.trap import Trap
from aios.kernel.journal import Journal
from aios.kernel.process import Process, ProcessTable
from aios.kernel.processes.mailbox import Mailroom
from aios.syscalls import wire
from aios.syscalls.errors import Cancelled, LimitReached
from aios.syscalls.msg import Recv, Send
from aios.syscalls.proc import Limits
from aios.syscalls.table import TABLE


@dataclass
class Timer:
    seconds: float
    run: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Office:
    """A mailroom with the kernel's real calls around it; `replies` is what went out."""

    folder: Path  # of its journal
    queue: int | None = 6
    timers: list[Timer] = field(default_factory=list)
    replies: dict[int, tuple[int, Any]] = field(default_factory=dict)
    last: int = 0

    def __post_init__(self) -> None:
        self.table = ProcessTable(9, 9, 9)
        signer = Signer(self.folder / "key")
        audit = AuditRecorder(
            AuditLog(self.folder / "audit", signer, lambda run: run(), boot=b"boot")
        )
        journal = Journal(self.folder / "journal", lambda run: run())
        grants = Grants(self.folder / "policy.json", self.table, journal.put)
        gate = Gate(self.table, grants, lambda *_: False)
        ask = Approvals(gate, 60.0, self.after).ask
        sessions = Sessions(journal.put)
        self.trap = Trap(
            self.table,
            {},
            self.sent,
            lambda *_: None,
            gate,
            ask,
            journal,
            self.sent,
            audit,
            sessions,
        )
        self.mailroom = Mailroom(self.after, self.table, journal.put)

    def after(self, seconds: float, run: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, run))
        return self.timers[-1]

    def sent(self, _route: bytes, data: bytes) -> None:
        call_id, kind, body = msgpack.unpackb(data)
        assert call_id not in self.replies
        self.replies[call_id] = kind, body

    def process(self, name: str) -> Process:
        return self.table.add("agent", name, 0, 0, Limits(queue=self.queue), 0.0)

    def receive(
        self, process: Process, sender: int | None = None, timeout: float | None = None
    ) -> Call:
        """A msg.recv; its reply, if there is one already, is in `replies`."""
        call = self.call(process, "msg.recv")
        call.run(self.mailroom.receive(call, Recv(sender, timeout)))
        return call

    def send(self, sender: Process, receiver: Process, body: Any) -> None:
        self.mailroom.send(self.call(sender, "msg.send"), Send(receiver.pid, body))

    def call(self, process: Process, name: str) -> Call:
        self.last += 1
        session = Session(b"%d" % process.pid, process.pid, process)
        return Call(self.trap, session, process, self.last, TABLE[name])

    def body(self, call: Call) -> Any:
        kind, body = self.replies[call.id]
        assert kind == wire.DONE
        return body["body"]


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_messages_come_in_the_order_in_which_they_were_sent(office: Office) -> None:
    ann, bob = office.process("ann"), office.process("bob")
    for body in ("one", "two", "three"):
        office.send(ann, bob, body)
    assert [office.body(office.receive(bob)) for _ in range(3)] == ["one", "two", "three"]


def test_mail_says_who_sent_it(office: Office) -> None:
    ann, bob = office.process("ann"), office.process("bob")
    office.send(ann, bob, {"x": [1]})
    call = office.receive(bob)
    assert office.replies[call.id] == (
        wire.DONE,
        {
            "sender": ann.pid,
            "name": "ann",
            "body": {"x": [1]},
            "labels": ["msg:/ann"],
            "principal": "/ann",
        },
    )


def test_a_full_mailbox_refuses_and_keeps_what_it_has(office: Office) -> None:
    bob = office.process("bob")
    ann = office.table.add("agent", "ann", bob.pid, 0, Limits(), 0.0)
    for body in range(6):
        office.send(ann, bob, body)
    with pytest.raises(LimitReached, match="mailbox of process 1 is full: 6 messages"):
        office.send(ann, bob, 6)
    assert office.body(office.receive(bob)) == 0
    office.send(ann, bob, 7)
    assert [office.body(office.receive(bob)) for _ in range(6)] == [1, 2, 3, 4, 5, 7]


def test_a_tree_of_agents_never_fills_the_mailbox_of_another(tmp_path: Path) -> None:
    """Or nobody could send anything to an agent that reads only what certain others send."""
    office = Office(tmp_path, queue=8)
    bob, evil, third = (office.process(name) for name in ("bob", "evil", "third"))
    helper = office.table.add("agent", "helper", evil.pid, 0, Limits(), 0.0)
    own = office.table.add("agent", "own", bob.pid, 0, Limits(), 0.0)
    person = office.table.add("client", "person", 0, 0, Limits(), 0.0)
    for number in range(4):
        office.send((evil, helper)[number % 2], bob, "junk")
    for one in (evil, helper):
        with pytest.raises(LimitReached, match="/evil and all below it have 4 messages in the mai"):
            office.send(one, bob, "junk")
    office.send(third, bob, "from another tree")
    office.send(own, bob, "from its child")
    office.send(person, bob, "from a person")
    assert office.body(office.receive(bob, person.pid)) == "from a person"
    assert office.body(office.receive(bob, evil.pid)) == "junk"
    with pytest.raises(LimitReached):  # the others have two
        office.send(evil, bob, "junk")
    office.receive(bob, evil.pid)
    office.send(evil, bob, "again")
    assert office.mailroom.check([bob]) == []
    office.mailroom.ended(bob)
    assert office.mailroom.shares == {}


def test_what_a_tree_has_others_keep_is_bounded_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many names its agents have, and whoever they send to."""
    monkeypatch.setattr("aios.kernel.processes.mailbox.MAX_UNREAD_BYTES", 100_000)
    office = Office(tmp_path, queue=None)
    ann, bob, cat = (office.process(name) for name in ("ann", "bob", "cat"))
    child = office.table.add("agent", "child", ann.pid, 0, Limits(), 0.0)
    sent = 0
    with pytest.raises(LimitReached, match=r"/ann and all below it have \d+ bytes of messages"):
        while True:
            office.send((ann, child)[sent % 2], (bob, cat)[sent % 2], "x" * 10_000)
            sent += 1
    assert sent == 10
    office.send(cat, bob, "x" * 60_000)  # another tree's
    with pytest.raises(LimitReached):
        office.send(ann, cat, "x" * 10_000)
    office.receive(bob)
    office.send(child, cat, "x" * 10_000)
    office.mailroom.ended(bob)
    office.mailroom.ended(cat)
    assert (office.mailroom.trees.held, office.mailroom.unread) == ({}, {})


def test_a_message_takes_as_much_memory_as_it_has_bytes(tmp_path: Path) -> None:
    """As lists in lists they would take forty times as much, and as long to read again."""
    office = Office(tmp_path, queue=None)
    ann = office.process("ann")
    tracemalloc.start()
    try:
        for _ in range(20):
            office.send(ann, ann, [[] for _ in range(20_000)])
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert sum(office.mailroom.unread.values()) > 20 * 20_000
    assert held < 5 * 20 * 20_000
    assert office.body(office.receive(ann)) == [[]] * 20_000


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    office = Office(tmp_path, queue=None)
    ann = office.process("ann")
    for body in range(1000):
        office.send(ann, ann, body)
    assert len(ann.mailbox) == 1000


def test_a_receiver_may_pick_a_sender(office: Office) -> None:
    ann, bob, cat = (office.process(name) for name in ("ann", "bob", "cat"))
    for sender, body in ((ann, "a1"), (bob, "b1"), (ann, "a2")):
        office.send(sender, cat, body)
    assert office.body(office.receive(cat, sender=bob.pid)) == "b1"
    assert office.receive(cat, sender=bob.pid).id not in office.replies
    assert [office.body(office.receive(cat)) for _ in range(2)] == ["a1", "a2"]


def test_who_waits_gets_it_at_once_and_first_come_first_served(office: Office) -> None:
    ann, bob, cat = (office.process(name) for name in ("ann", "bob", "cat"))
    picky = office.receive(cat, sender=bob.pid)
    first, second = office.receive(cat), office.receive(cat)
    assert office.replies == {}
    office.send(ann, cat, "a")
    assert list(office.replies) == [first.id]
    assert office.body(first) == "a"
    office.send(bob, cat, "b")
    assert office.body(picky) == "b"
    office.send(bob, cat, "c")
    assert office.body(second) == "c"
    assert office.mailroom.waiting == {}
    assert not cat.mailbox


def test_who_waits_takes_no_room_in_the_mailbox(tmp_path: Path) -> None:
    office = Office(tmp_path, queue=0)
    ann = office.process("ann")
    with pytest.raises(LimitReached):
        office.send(ann, ann, "nobody waits")
    call = office.receive(ann)
    office.send(ann, ann, "now")
    assert office.body(call) == "now"


def test_a_timeout_ends_the_wait_and_later_mail_is_kept(office: Office) -> None:
    ann = office.process("ann")
    call = office.receive(ann, timeout=2.5)
    [timer] = office.timers
    assert timer.seconds == 2.5
    timer.run()
    kind, error = office.replies[call.id]
    assert (kind, error["code"]) == (wire.FAILED, "call.timed_out")
    assert error["message"] == "no message within 2.5 s"
    assert office.mailroom.waiting == {}
    office.send(ann, ann, "late")
    assert office.body(office.receive(ann)) == "late"


def test_a_message_stops_the_clock(office: Office) -> None:
    ann = office.process("ann")
    call = office.receive(ann, timeout=9.0)
    office.send(ann, ann, "in time")
    [timer] = office.timers
    assert timer.cancelled
    timer.run()  # even if it was on its way already
    assert office.body(call) == "in time"


def test_a_wait_that_is_cancelled_takes_no_mail(office: Office) -> None:
    ann = office.process("ann")
    call = office.receive(ann, timeout=9.0)
    call.fail(Cancelled("asked to"))
    assert office.timers[0].cancelled
    office.send(ann, ann, "for the next")
    assert office.body(office.receive(ann)) == "for the next"


def test_mail_that_is_there_is_had_even_with_no_time_to_wait(office: Office) -> None:
    ann = office.process("ann")
    office.send(ann, ann, "there")
    assert office.body(office.receive(ann, timeout=0.0)) == "there"
    assert office.timers == []


def test_nobody_waits_for_a_process_that_has_ended(office: Office) -> None:
    reader, writer, other = (office.process(name) for name in ("reader", "writer", "other"))
    before = office.receive(reader, sender=writer.pid)
    anyone = office.receive(reader)
    office.table.end(writer, 0, "exit", 0.0)
    office.mailroom.ended(writer)
    assert (before.ended, anyone.ended) == (True, False)
    assert office.replies[before.id][1]["code"] == "process.gone"
    late = office.receive(reader, sender=writer.pid)
    assert office.replies[late.id][1]["code"] == "process.gone"
    office.send(other, reader, "still")
    assert office.replies[anyone.id][1]["body"] == "still"
