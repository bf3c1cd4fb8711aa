"""The base class of the SDK's groups of system calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from aios.syscalls.connection import CancelReply, Welcome
from aios.syscalls.errors import KernelGone

from .connection import Connection, Pending

R = TypeVar("R")


def several(texts: Sequence[str]) -> list[str]:
    """Return texts as a list. Raises TypeError for one text, which iterates over its letters."""
    if isinstance(texts, str):
        raise TypeError(f"give several, as in [{texts!r}]")
    return list(texts)


class Calls:
    def __init__(self, connection: Connection, welcome: Welcome) -> None:
        self.connection = connection
        self.welcome = welcome
        self.pid = welcome.pid

    def start(self, name: str, /, **args: Any) -> Pending:
        """Start any system call by its name, without waiting for it."""
        return self.connection.start(name, {k: v for k, v in args.items() if v is not None})

    def cancel(self, call: int) -> bool:
        """Cancel a call of this connection; return false if there is none of that number."""
        return self._call(CancelReply, "call.cancel", call=call).found

    def _follow(self, piece: type[R], name: str, /, **args: Any) -> Iterator[R]:
        """Iterate over the pieces of a call that has no end of its own; then cancel it."""
        return self._pieces(piece, self.start(name, **args))

    def _pieces(self, piece: type[R], call: Pending) -> Iterator[R]:
        try:
            for body in call:
                yield msgspec.convert(body, piece)
            call.wait()
        finally:
            if not self.connection.socket.closed:
                with contextlib.suppress(KernelGone):
                    self.cancel(call.id)

    def _call(self, reply: type[R], call: str, /, **args: Any) -> R:
        return msgspec.convert(self.start(call, **args).wait(), reply)
