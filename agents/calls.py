"""What every group of system calls of the SDK stands on."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from aios.syscalls import messages as t

from .client import Connection, Pending

R = TypeVar("R")


class Calls:
    def __init__(self, connection: Connection, welcome: t.Welcome) -> None:
        self.connection = connection
        self.welcome = welcome
        self.pid = welcome.pid

    def start(self, name: str, /, **args: Any) -> Pending:
        """Any system call by its name, without waiting for it."""
        return self.connection.start(name, {k: v for k, v in args.items() if v is not None})

    def _call(self, reply: type[R], call: str, /, **args: Any) -> R:
        return msgspec.convert(self.start(call, **args).wait(), reply)
