"""The SDK: every system call as a typed method.

from aios.agents import connect

with connect() as aios:
    for piece in aios.generate("Why is the sky blue?", max_tokens=64, seed=1):
        print(piece, end="", flush=True)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from aios.syscalls.base import Done
from aios.syscalls.connection import Welcome
from aios.syscalls.errors import AiosError, BadInput
from aios.syscalls.home import default_home
from aios.syscalls.kernel import CheckReport, Event, EventKind, Policy, Stats, Status
from aios.syscalls.llm import (
    Appended,
    ContextInfo,
    OnFull,
    Opened,
    Text,
    Tokens,
    Used,
)
from aios.syscalls.msg import Mail
from aios.syscalls.proc import (
    Exited,
    Limits,
    LogPart,
    NiceReply,
    ProcessInfo,
    SandboxGrants,
    Signal,
    Spawned,
)
from aios.syscalls.rules import Manifest
from aios.syscalls.wire import Receipt

from .access import AccessCalls
from .calls import several
from .connection import Connection, inherited_token
from .contexts import Context, Generation, Prompt
from .declared import declared_name
from .memory import MemoryCalls
from .remote import address_from_environment, remote_kernel
from .storage import StorageCalls
from .tools import ToolCalls

FAREWELL_TIMEOUT_S = 2.0


def connect(
    home: Path | None = None, name: str | None = None, *, address: str | None = None,
    key: Path | None = None, server_key: str | None = None, receipts: bool = False,
) -> Aios:  # fmt: skip
    """Open a connection to the kernel of `home` (AIOS_HOME, or the user's own).

    In an agent this speaks for the agent; remote for a person, listed as `name`. With an
    `address`, "tcp://...", to a kernel that has allowed the key in the file `key`, and whose own is
    `server_key`; without it and a home, AIOS_ADDRESS, AIOS_KEY and AIOS_SERVER_KEY say so. With
    `receipts`, Aios.receipt says where the audit log has the last call that ended.

    Raises:
        KernelGone: no kernel answers there.
        Denied: it does not allow the key.
    """
    if address is None and home is None:
        address = address_from_environment()
    remote = None if address is None else remote_kernel(address, key, server_key)
    connection = Connection(
        home or default_home(), inherited_token(), name, remote, receipts=receipts
    )
    return Aios(connection, msgspec.convert(connection.welcome, Welcome))


class Aios(MemoryCalls, StorageCalls, AccessCalls, ToolCalls):
    """One connection to the kernel. Only one thread at a time may use it: others get BadInput."""

    @property
    def receipt(self) -> Receipt | None:
        """The sequence and chain value of the last call's record in the audit log, if `connect` was
        asked for receipts. It proves later that the log is unchanged: docs/audit.md."""
        return self.connection.receipt

    # --- process --------------------------------------------------------------------------------

    def spawn(
        self, program: str, task: Any = None, *, args: Sequence[str] = (), name: str | None = None,
        limits: dict[str, Any] | None = None, nice: int | None = None, cwd: str | None = None,
        contexts: Sequence[Context] = (), manifest: Manifest | Mapping[str, Any] | None = None,
        reach: SandboxGrants | Mapping[str, Any] | None = None,
    ) -> int:  # fmt: skip
        """Start an agent and return its pid. It gets forks of `contexts`: Aios.inherited. It may do
        what its `manifest` allows, within the rights of the caller. `reach` names files and ports
        that its sandbox lets it use. Without a `name` it has that of its class, or of its file."""
        name = name or declared_name(program)
        spawned = self._call(
            Spawned, "proc.spawn", program=program, task=task, args=several(args), name=name,
            limits=limits, nice=nice, cwd=cwd, contexts=[context.id for context in contexts],
            manifest=msgspec.to_builtins(manifest), reach=msgspec.to_builtins(reach),
        )  # fmt: skip
        return spawned.pid

    def exit(self, code: int = 0, result: Any = None) -> None:
        self._call(Done, "proc.exit", code=code, result=result)

    def wait(self, pid: int | None = None, timeout: float | None = None) -> Exited:
        return self._call(Exited, "proc.wait", pid=pid, timeout=timeout)

    def kill(self, pid: int, signal: Signal = "TERM") -> None:
        self._call(Done, "proc.kill", pid=pid, signal=signal)

    def nice(self, nice: int, pid: int | None = None) -> int:
        return self._call(NiceReply, "proc.nice", nice=nice, pid=pid).nice

    def limits(self, pid: int | None = None, limits: dict[str, Any] | None = None) -> Limits:
        return self._call(Limits, "proc.limits", pid=pid, limits=limits)

    def ps(self, *, all: bool = False) -> list[ProcessInfo]:
        return self._call(list[ProcessInfo], "proc.ps", all=all)

    def whoami(self) -> ProcessInfo:
        return self._call(ProcessInfo, "proc.whoami")

    def log(self, pid: int, offset: int = 0, wait: float = 0.0) -> LogPart:
        return self._call(LogPart, "proc.log", pid=pid, offset=offset, wait=wait)

    # --- llm ------------------------------------------------------------------------------------

    def open(
        self, system: str | None = None, *, name: str | None = None,
        on_full: OnFull | None = None, owner: str | None = None,
    ) -> Context:  # fmt: skip
        """Open a context. One with a `name` outlives its process, and the machine's power: it is
        opened again, with all that is in it, by a process of the same principal; a person opens
        any, by its `owner`. `on_full` says what happens when its window is full: "error", "slide",
        "summarize" or "recall"."""
        opened = self._call(
            Opened, "llm.open", system=system, name=name, on_full=on_full, owner=owner
        )
        return Context(self, opened.ctx)

    def inherited(self) -> list[Context]:
        """Return the contexts that this agent was spawned with."""
        return [Context(self, ctx) for ctx in self.welcome.contexts]

    def contexts(self) -> list[ContextInfo]:
        """List all contexts that this process may see, including those asleep."""
        return self._call(list[ContextInfo], "llm.contexts")

    def fork(self, ctx: int, name: str | None = None) -> Context:
        return Context(self, self._call(Opened, "llm.fork", ctx=ctx, name=name).ctx)

    def checkpoint(self, ctx: int, name: str) -> Used:
        return self._call(Used, "llm.checkpoint", ctx=ctx, name=name)

    def rollback(self, ctx: int, name: str) -> Used:
        return self._call(Used, "llm.rollback", ctx=ctx, name=name)

    def append(self, ctx: int, prompt: Prompt, *, raw: bool = False) -> Appended:
        return self._call(Appended, "llm.append", ctx=ctx, **as_input(prompt, raw))

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        ctx: int | None = None,
        raw: bool = False,
        **options: Any,
    ) -> Generation:
        """Generate an answer to `prompt`: a user's message, a list of messages or of token ids.

        With `raw`, a string is text to go on from, outside the chat template. `options` are the
        fields of llm.generate: max_tokens, temperature, seed, stop, schema, grammar, digest, ...
        """
        given = {} if prompt is None else as_input(prompt, raw)
        call = self.start("llm.generate", ctx=ctx, **given, **options)
        return Generation(self, call, alone=ctx is None)

    def tokenize(self, prompt: str | Sequence[dict[str, str]], *, raw: bool = True) -> list[int]:
        return self._call(Tokens, "llm.tokenize", **as_input(prompt, raw)).tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._call(Text, "llm.detokenize", tokens=list(tokens)).text

    def close_context(self, ctx: int, *, forget: bool = False) -> None:
        self._call(Done, "llm.close", ctx=ctx, forget=forget)

    # --- messages -------------------------------------------------------------------------------

    def send(self, to: int | str, body: Any) -> None:
        self.connection.start("msg.send", {"to": to, "body": body}).wait()  # None is a body as well

    def recv(self, sender: int | None = None, timeout: float | None = None) -> Mail:
        return self._call(Mail, "msg.recv", sender=sender, timeout=timeout)

    # --- kernel ---------------------------------------------------------------------------------

    def status(self) -> Status:
        return self._call(Status, "kernel.status")

    def stats(self) -> Stats:
        return self._call(Stats, "kernel.stats")

    def events(self, *kinds: EventKind) -> Iterator[Event]:
        """Follow events."""
        return self._follow(Event, "kernel.events", kinds=list(kinds))

    def policy(self, policy: str | None = None, quantum: int | None = None) -> Policy:
        return self._call(Policy, "kernel.policy", policy=policy, quantum=quantum)

    def check(self) -> list[str]:
        return self._call(CheckReport, "kernel.check").problems

    def stop(self) -> None:
        self._call(Done, "kernel.stop")

    def close(self) -> None:
        """Close the connection. A client's entry in the process table goes with it."""
        if self.welcome.kind != "agent" and not self.connection.socket.closed:
            with contextlib.suppress(AiosError):  # the entry goes when the connection does
                self.start("proc.exit").wait(FAREWELL_TIMEOUT_S)
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_input(prompt: Prompt, raw: bool) -> dict[str, Any]:
    """Return `prompt` as fields of llm.append. Raises BadInput if it is no prompt."""
    if isinstance(prompt, str):
        return {"text": prompt} if raw else {"messages": [{"role": "user", "content": prompt}]}
    if isinstance(prompt, bytes) or not isinstance(prompt, Sequence):
        raise BadInput(
            f"a prompt is no {type(prompt).__name__}",
            'give a string, a list of {"role", "content"}, or a list of token ids',
        )
    items = list(prompt)
    return {"tokens": items} if items and isinstance(items[0], int) else {"messages": items}
