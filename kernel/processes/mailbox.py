"""Messages between agents: a bounded mailbox a process, and a bound on what a tree of agents has
others keep.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from aios.syscalls.base import Done
from aios.syscalls.errors import LimitReached, ProcessGone, TimedOut
from aios.syscalls.msg import Mail, Recv, Send

from ..entry.call import Call
from ..journal import PutRow
from ..lib.callbacks import After, ignore
from ..lib.coroutine import Wait, within
from ..lib.trees import Trees, check_tree, leaves_room, root
from ..process import Process, ProcessTable, QueuedMessage

MAX_UNREAD_BYTES = 64 << 20  # of messages that one tree of agents has sent

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(QueuedMessage).decode
_mail = msgspec.msgpack.Decoder(Mail).decode


class Mailroom:
    """Hands messages to receivers that wait, and keeps them for others.

    `put_row` journals a message in a mailbox, or its removal; `on_sent` and `on_received` hear of
    each message.
    """

    def __init__(
        self, after: After, table: ProcessTable, put_row: PutRow,
        on_sent: Callable[[Process, Process, Any], None] = ignore,
        on_received: Callable[[Process, Mail], None] = ignore,
    ) -> None:  # fmt: skip
        self.after, self.table, self.put_row = after, table, put_row
        self.on_sent, self.on_received = on_sent, on_received
        self.last = 0
        self.unread: dict[int, int] = {}  # bytes, by number
        self.trees = Trees()  # these bytes, by sender
        self.shares: Counter[tuple[int, str]] = Counter()  # messages, by receiver and sender's tree
        # By pid of the receiver: from whom, if not from anyone.
        self.waiting: dict[int, deque[tuple[int | None, Wait[Mail]]]] = {}

    def send(self, call: Call, args: Send) -> Done:
        """Send a message.

        Raises:
            NotFound: there is no such receiver. LimitReached: its mailbox, or a share of it, is
                full.
        """
        sender, body = call.process, args.body
        receiver = self.table.find(args.to, sender.principal)
        mail = Mail(
            sender=sender.pid, name=sender.name, principal=sender.principal, body=body,
            labels=sorted(sender.marks),
        )  # fmt: skip
        for wanted, wait in self.waiting.get(receiver.pid, ()):
            if wanted in (None, sender.pid):
                self.on_sent(sender, receiver, body)
                self._hand_out(receiver, mail)
                wait.done(mail)
                return Done()
        self._check_room(receiver, mail.principal)
        if mail.principal:
            check_tree(
                mail.principal, self.trees.total(root(mail.principal)), MAX_UNREAD_BYTES,
                "bytes of messages that wait", "send again when some of it was read",
            )  # fmt: skip
        data = _encode(mail)
        self.last += 1
        self.keep(receiver, self.last, data)
        self.put_row(f"mail/{receiver.pid}/{self.last}", data)
        self.on_sent(sender, receiver, body)
        return Done()

    def _check_room(self, receiver: Process, sender: str) -> None:
        """Raise LimitReached where a mailbox has no room for a message of this sender.

        Each tree of agents but the receiver's own may have half of what the others leave.
        """
        limit, hint = receiver.limits.queue, "send again when it has read some"
        if limit is None:
            return
        waiting, tree = len(receiver.mailbox), root(sender)
        if waiting >= limit:
            raise LimitReached(
                f"the mailbox of process {receiver.pid} is full: {limit} messages", hint
            )
        held = self.shares[receiver.pid, tree]
        other = sender and tree != root(receiver.principal)
        if other and not leaves_room(held, waiting, limit):
            raise LimitReached(
                f"{tree} and all below it have {held} messages in the mailbox of process "
                f"{receiver.pid}: the rest of its room is for others", hint,
            )  # fmt: skip

    def keep(self, receiver: Process, number: int, data: bytes) -> None:
        """Keep a message, an encoded Mail, until it is read."""
        self.last = max(self.last, number)
        message = receiver.mailbox[number] = _decode(data)
        message.data = data
        self.unread[number] = len(data)
        self.trees.add(message.principal, len(data))
        self.shares[receiver.pid, root(message.principal)] += 1

    async def receive(self, call: Call, args: Recv) -> Mail:
        """Return the oldest message, or the oldest from a sender; wait for one if there is none.

        Raises:
            ProcessGone: the sender is not alive.
            TimedOut: none has come within `timeout` seconds.
        """
        sender, timeout, mailbox = args.sender, args.timeout, call.process.mailbox
        for number, message in mailbox.items():
            if sender in (None, message.sender):
                mail = _mail(message.data)
                self._remove(call.process, number)
                self._hand_out(call.process, mail)
                return mail
        if sender is not None and not self.table.is_alive(sender):
            raise _gone(sender)
        waiting = self.waiting.setdefault(call.process.pid, deque())
        wait = Wait[Mail]()
        waiting.append((sender, wait))
        try:
            return await within(
                wait, timeout, self.after,
                lambda: wait.fail(TimedOut(f"no message within {timeout:g} s")),
            )  # fmt: skip
        finally:
            waiting.remove((sender, wait))
            if not waiting:
                self.waiting.pop(call.process.pid, None)

    def _hand_out(self, receiver: Process, mail: Mail) -> None:
        receiver.taint(set(mail.labels))
        self.on_received(receiver, mail)

    def _remove(self, process: Process, number: int) -> None:
        message = process.mailbox.pop(number)
        self.trees.add(message.principal, -self.unread.pop(number))
        share = process.pid, root(message.principal)
        self.shares[share] -= 1
        if not self.shares[share]:
            del self.shares[share]
        self.put_row(f"mail/{process.pid}/{number}", None)

    def ended(self, process: Process) -> None:
        """Empty the mailbox of a process that has ended, and fail all waits for its messages."""
        for number in list(process.mailbox):
            self._remove(process, number)
        pid = process.pid
        for waiting in list(self.waiting.values()):
            for wanted, wait in list(waiting):
                if wanted == pid:
                    wait.fail(_gone(pid))

    def check(self, processes: Iterable[Process]) -> list[str]:
        """List each broken invariant in words."""
        processes = list(processes)
        kept = {number: each for process in processes for number, each in process.mailbox.items()}
        apart = kept.keys() ^ self.unread.keys()
        counted: Counter[str] = Counter()
        for number in kept.keys() & self.unread.keys():
            counted[kept[number].principal] += self.unread[number]
        problems = [f"message {number} is counted or in a mailbox, not both" for number in apart]
        shares = Counter(
            (each.pid, root(message.principal))
            for each in processes for message in each.mailbox.values()
        )  # fmt: skip
        wrong = (counted, shares) != (self.trees.held, self.shares)
        return problems + ["the bytes of messages, or their shares, are miscounted"] * wrong


def _gone(pid: int) -> ProcessGone:
    return ProcessGone(
        f"process {pid} has ended: no message will come from it", f"`aios logs {pid}` shows why"
    )
