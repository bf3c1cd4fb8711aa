"""A kernel by itself, for the bench: `python -m aios.bench.ungated CONFIG LINK gated|ungated`.

LINK is the descriptor of the socket on which the bench plays init. An ungated kernel asks no rule
and records nothing; there is no such setting in the product, only this program does that.
"""

from __future__ import annotations

import gc
import sys
from functools import partial
from typing import Any

import msgspec

from aios.kernel.audit.recorder import AuditRecorder
from aios.kernel.boot import Kernel
from aios.kernel.config import Config
from aios.kernel.entry.call import Session
from aios.kernel.process import Process
from aios.kernel.rules import Permit
from aios.syscalls.base import Message
from aios.syscalls.connection import Welcome
from aios.syscalls.errors import AiosError
from aios.syscalls.table import Syscall
from aios.syscalls.wire import Receipt

NOTHING: Receipt = (0, b"")


class NoAudit(AuditRecorder):
    def __init__(self) -> None:
        """Record nothing."""

    def check_room(self, syscall: Syscall, process: Process | None) -> None:
        pass

    def called(
        self, process: Process, call_id: int, syscall: Syscall, args: Message, raw: msgspec.Raw,
        rule: str,
    ) -> Receipt:  # fmt: skip
        return NOTHING

    def changed(
        self, process: Process, call_id: int, syscall: Syscall, intent: int, text: str
    ) -> int:
        return 0

    def ended(
        self, process: Process, call_id: int, syscall: Syscall, intent: int, code: str
    ) -> Receipt:
        return NOTHING

    def refused(
        self, process: Process | None, peer: str, call_id: int, name: str, raw: bytes,
        error: AiosError,
    ) -> Receipt | None:  # fmt: skip
        return None


class NoGate:
    def check(self, process: Process, syscall: Syscall, args: Any) -> Permit:
        return Permit("")


def hello(kernel: Kernel, session: Session, args: Any) -> Welcome:
    """Greet the bench as an agent: the gate asks nothing of a person."""
    welcome = kernel.greeter.hello(session, args)
    assert session.process is not None
    session.process.kind, session.process.principal = "agent", "/bench"
    return welcome


def main() -> None:
    config, link, gate = sys.argv[1:]
    kernel = Kernel(msgspec.json.decode(config, type=Config), int(link))
    if gate == "ungated":
        kernel.trap.audit, kernel.trap.gate = NoAudit(), NoGate()
    kernel.trap.hello = partial(hello, kernel)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # as the kernel's own program does
    kernel.run()


if __name__ == "__main__":
    main()
