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
from aios.syscalls.errors import AiosError, NotJson
from aios.syscalls.kernel import CheckReport, Event, EventKind, Policy, Stats, Status
from aios.syscalls.llm import (
    Appended,
    ContextInfo,
    Finish,
    Moved,
    OnFull,
    Opened,
    Piece,
    Result,
    Text,
    Timings,
    Tokens,
    Usage,
    Used,
)
from aios.syscalls.msg import Mail
from aios.syscalls.proc import (
    Exited,
    Limits,
    LogPart,
    NiceReply,
    ProcessInfo,
    Reach,
    Signal,
    Spawned,
)
from aios.syscalls.rules import Manifest
from aios.syscalls.sto import Hit
from aios.syscalls.wire import Receipt

from . import strict_json
from .access import AccessCalls
from .calls import several
from .connection import Pending, kernel_elsewhere, named_address, say_hello
from .declared import declared_name
from .memory import MemoryCalls
from .storage import StorageCalls
from .tools import ToolCalls

FAREWELL_S = 2.0  # that the kernel has to take note of a client's end

Prompt = str | Sequence[dict[str, str]] | Sequence[int]


def connect(
    home: Path | None = None, name: str | None = None, *, address: str | None = None,
    key: Path | None = None, server_key: str | None = None, receipts: bool = False,
) -> Aios:  # fmt: skip
    """Open a connection to the kernel of `home` (AIOS_HOME, or the user's own).

    In an agent this speaks for the agent; elsewhere for a person, listed as `name`. With an
    `address`, "tcp://...", to a kernel that has allowed the key in the file `key`, and whose own is
    `server_key`; without it and a home, AIOS_ADDRESS, AIOS_KEY and AIOS_SERVER_KEY say so. With
    `receipts`, Aios.receipt says where the audit log has the last call that ended.

    Raises:
        KernelGone: no kernel answers there.
        Denied: it does not allow the key.
    """
    if address is None and home is None:
        address = named_address()
    elsewhere = None if address is None else kernel_elsewhere(address, key, server_key)
    connection = say_hello(home, name, elsewhere, receipts=receipts)
    return Aios(connection, msgspec.convert(connection.welcome, Welcome))


class Generation:
    """An answer in the making. Iterate it for pieces of text; the rest waits for its end. Without a
    context it is cancelled when nobody has it any more.

    Raises, from either: LimitReached, ContextFull, CoreFailed and other AiosErrors.
    """

    def __init__(self, aios: Aios, pending: Pending, *, alone: bool = False) -> None:
        self._aios = aios
        self._pending = pending
        self._alone = alone
        self._result: Result | None = None

    def __del__(self) -> None:
        if self._alone and not self._pending.ended:
            self._pending.connection.let_go(self._pending.id)

    def __iter__(self) -> Iterator[str]:
        for piece in self.pieces():
            if piece.text:
                yield piece.text

    def pieces(self) -> Iterator[Piece]:
        """Token by token, with ids and log probabilities."""
        for body in self._pending:
            yield msgspec.convert(body, Piece)
        self.result()

    def result(self) -> Result:
        if self._result is None:
            self._result = msgspec.convert(self._pending.wait(), Result)
        return self._result

    @property
    def ended(self) -> bool:
        return self._pending.ended

    def cancel(self) -> None:
        """Stop at the next token; the result then holds what there is."""
        self._aios.cancel(self._pending.id)

    def abandon(self) -> None:
        """Cancel it unless it has ended, and wait for its end."""
        if not self.ended:
            self.cancel()
            for _ in self._pending:
                pass

    @property
    def text(self) -> str:
        return self.result().text

    @property
    def json(self) -> Any:
        """The value of an answer that was held to a schema.

        Raises:
            NotJson: it ended before it was complete; `finish` says why. Or its text fits the schema
                and its value does not: a key comes twice, a number is too large.
        """
        result = self.result()
        if result.finish != "stop":
            why = f"the answer was cut after {result.usage.completion} tokens ({result.finish})"
            raise NotJson(why)
        try:
            return strict_json.read(result.text)
        except (ValueError, RecursionError) as error:
            raise NotJson(f"the answer is not JSON: {error}") from error

    @property
    def tokens(self) -> list[int]:
        return self.result().tokens

    @property
    def finish(self) -> Finish:
        return self.result().finish

    @property
    def usage(self) -> Usage:
        return self.result().usage

    @property
    def timings(self) -> Timings:
        return self.result().timings

    @property
    def moved(self) -> Moved | None:
        """What left a full window for this call, and what came back."""
        return self.result().moved

    @property
    def digest(self) -> str | None:
        return self.result().digest


class Context:
    """An open context: what enters it stays, until it is closed."""

    def __init__(self, aios: Aios, ctx: int) -> None:
        self._aios = aios
        self.id = ctx
        self._calls: list[Generation] = []

    def append(self, prompt: Prompt, *, raw: bool = False) -> Appended:
        return self._aios.append(self.id, prompt, raw=raw)

    def fork(self, name: str | None = None) -> Context:
        """A copy that goes on by itself; what both have in common is computed once."""
        return self._aios.fork(self.id, name)

    def checkpoint(self, name: str) -> Used:
        """Remember its state as `name`."""
        return self._aios.checkpoint(self.id, name)

    def rollback(self, name: str) -> Used:
        """Go back to the checkpoint `name`. Raises NotFound where there is none."""
        return self._aios.rollback(self.id, name)

    def generate(
        self, prompt: Prompt | None = None, *, raw: bool = False, **options: Any
    ) -> Generation:
        """Append `prompt`, if any, and generate; `options` are the fields of llm.generate."""
        answer = self._aios.generate(prompt, ctx=self.id, raw=raw, **options)
        self._calls = [call for call in self._calls if not call.ended] + [answer]
        return answer

    def recall(self, query: str, **options: Any) -> list[Hit]:
        """Put what fits `query` best of what is stored into the context, each passage with its
        source; `options` are those of Aios.sto_search.

        Raises, beside what a search does: ContextFull.
        """
        hits = self._aios.sto_search(query, **options).hits
        if hits:
            self.append([{"role": "user", "content": "\n\n".join(map(_quoted, hits))}])
        return hits

    def close(self, *, forget: bool = False) -> None:
        """Close it; what it still generates, whoever left off reading that, is cancelled. One with
        a name sleeps until it is opened again, unless it is to be forgotten."""
        for call in self._calls:
            call.abandon()
        self._aios.close_context(self.id, forget=forget)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Aios(MemoryCalls, StorageCalls, AccessCalls, ToolCalls):
    """One connection to the kernel; BadInput for a thread that uses it while another does."""

    @property
    def receipt(self) -> Receipt | None:
        """Sequence and chain value of the last call's record in the audit log, where receipts were
        asked for. Whoever keeps it can show that the log is as it was then: docs/audit.md."""
        return self.connection.receipt

    # --- process --------------------------------------------------------------------------------

    def spawn(
        self, program: str, task: Any = None, *, args: Sequence[str] = (), name: str | None = None,
        limits: dict[str, Any] | None = None, nice: int | None = None, cwd: str | None = None,
        contexts: Sequence[Context] = (), manifest: Manifest | Mapping[str, Any] | None = None,
        reach: Reach | Mapping[str, Any] | None = None,
    ) -> int:  # fmt: skip
        """Start an agent; its pid. It gets forks of `contexts`: Aios.inherited. Of what the caller
        may do, it may do what its `manifest` allows. `reach` names files and ports beyond the walls
        around its process. Without a `name` it is listed as its class says, or else its file."""
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
        """The contexts that this agent was spawned with."""
        return [Context(self, ctx) for ctx in self.welcome.contexts]

    def contexts(self) -> list[ContextInfo]:
        """All that this process may see, those asleep as well."""
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
        """What happens, as it happens."""
        return self._follow(Event, "kernel.events", kinds=list(kinds))

    def policy(self, policy: str | None = None, quantum: int | None = None) -> Policy:
        return self._call(Policy, "kernel.policy", policy=policy, quantum=quantum)

    def check(self) -> list[str]:
        return self._call(CheckReport, "kernel.check").problems

    def stop(self) -> None:
        self._call(Done, "kernel.stop")

    def close(self) -> None:
        """End the connection; a client's process row ends with it."""
        if self.welcome.kind != "agent" and not self.connection.socket.closed:
            with contextlib.suppress(AiosError):  # then the row goes when the connection does
                self.start("proc.exit").wait(FAREWELL_S)
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _quoted(hit: Hit) -> str:
    source = f"{hit.owner}:{hit.path}, version {hit.version}"
    return f"From {source}:\n{hit.text}"


def as_input(prompt: Prompt, raw: bool) -> dict[str, Any]:
    """The fields of llm.append that hold `prompt`."""
    if isinstance(prompt, str):
        return {"text": prompt} if raw else {"messages": [{"role": "user", "content": prompt}]}
    items = list(prompt)
    return {"tokens": items} if items and isinstance(items[0], int) else {"messages": items}


__all__ = ["Aios", "AiosError", "Context", "Generation", "connect"]
