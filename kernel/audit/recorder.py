"""What is recorded: of each call who, what, on what, which rule decided, and what came of it.

What agents say, their messages, prompts and values, is never in the log: arguments are there as a
hash, by what they are about, and where they change who may do what, in words (details.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from operator import attrgetter
from typing import Any

import msgspec

from aios.syscalls.base import Message
from aios.syscalls.errors import AiosError, Denied, DiskFull
from aios.syscalls.kernel import AuditInfo
from aios.syscalls.table import Syscall
from aios.syscalls.wire import Receipt

from ..lib.patterns import SEVERAL, quoted
from ..process import Process
from .details import details, parts
from .gathered import Fields, Gathered
from .log import RESERVE, Log

TEXT = 160  # bytes of one text in a record
# Fields of arguments that say what a call is about; of a map its keys, of changes their paths.
ABOUT = (
    "owner", "principal", "pid", "ctx", "contexts", "call", "program", "name", "to", "sender",
    "signal", "space", "items", "keys", "changes", "upload", "path", "prefix", "version", "mode",
    "right", "on", "id", "answer", "target", "policy", "quantum", "nice", "kinds",
    "public", "person", "tools", "at_once",
)  # fmt: skip


class Audit:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.due = 0  # records that are to last before what they announce may leave the kernel
        self.unrecorded = 0  # refusals since there was room last
        self.gathered = Gathered(self._append, time.monotonic)
        if log.trouble:
            print(f"audit: {log.trouble}", file=sys.stderr, flush=True)
            self.note("audit.damaged", detail=log.trouble)
        if log.torn:
            self.note("audit.torn", detail=f"{log.torn} bytes cut off")

    # --- calls ------------------------------------------------------------------------------------

    def check_room(self, row: Syscall, process: Process | None) -> None:
        """Raises DiskFull where this call could not be recorded, or is one that has to wait. The
        last of the room is for what ends something, and the last of that for persons."""
        is_agent = process is not None and process.kind != "client"
        if row.allowed_when_full:
            needed = RESERVE // 8 if is_agent else 1
        else:
            needed = RESERVE if row.mutates else RESERVE // 2
        if not self.log.has_room(needed):
            raise DiskFull(f"the audit log cannot grow: {self.log.full}")
        if self.unrecorded:
            count, self.unrecorded = self.unrecorded, 0
            self.note("audit.unrecorded", detail=f"{count} refused calls")

    def called(
        self, process: Process, call_id: int, row: Syscall, args: Message, raw: msgspec.Raw,
        rule: str,
    ) -> Receipt:  # fmt: skip
        """Before it is served: the intent of what changes something, of the rest all there is."""
        kind = "intent" if row.mutates else "read"
        append = self.gathered.add if _is_free(process, row) else self.log.append
        receipt = append(
            (process.pid, short(process.principal), kind, call_id, row.name, about(args),
             sha256(raw).digest(), short(rule), "", 0)
        )  # fmt: skip
        last, text = receipt[0], details(args)
        if text:
            last = self.changed(process, call_id, row, last, text)
        if row.external:
            self.due = last + 1
        return receipt

    def changed(self, process: Process, call_id: int, row: Syscall, intent: int, text: str) -> int:
        """What a call changes of who may do what, in words; where the last of its records is."""
        last = intent
        for part in parts(text, bound=process.kind != "client"):
            last, _ = self.log.append(
                (process.pid, short(process.principal), "note", call_id, row.name, part, b"", "",
                 "", intent)
            )  # fmt: skip
        return last

    def ended(
        self, process: Process, call_id: int, row: Syscall, intent: int, code: str
    ) -> Receipt:
        """The outcome of what changes something, before its final reply leaves."""
        append = self.gathered.add if _is_free(process, row) else self.log.append
        return append(
            (process.pid, short(process.principal), "outcome", call_id, row.name, "", b"", "",
             code, intent)
        )  # fmt: skip

    def refused(
        self, process: Process | None, peer: str, call_id: int, name: str, raw: bytes,
        error: AiosError,
    ) -> Receipt | None:  # fmt: skip
        """A call that is not served; `peer` says whose connection it came by. The receipt may be
        that of another which stands for it. None: the disk is full, and it is only counted."""
        if not self.log.has_room(RESERVE // 4):
            self.unrecorded += 1
            return None
        pid, principal = (0, "") if process is None else (process.pid, process.principal)
        rule = error.rule if isinstance(error, Denied) else ""
        return self.gathered.add(
            (pid, short(principal), "denied", call_id, short(name), peer,
             sha256(raw).digest(), short(rule), error.code, 0)
        )  # fmt: skip

    # --- the kernel's own -------------------------------------------------------------------------

    def note(self, what: str, pid: int = 0, principal: str = "", detail: str = "") -> None:
        self.log.append((pid, short(principal), "note", 0, what, short(detail), b"", "", "", 0))

    def kept_out(self, what: str, pid: int, principal: str, detail: str) -> None:
        """A note of what Linux or the kernel has refused, which who tries gets without end."""
        self.gathered.add((pid, short(principal), "note", 0, what, short(detail), b"", "", "", 0))

    def tell(self) -> None:
        """Record what was only counted; now and then, and at the end."""
        if self.log.has_room(len(self.gathered.same)):
            self.gathered.tell()

    def _append(self, fields: Fields) -> Receipt:
        return self.log.append((*fields[:5], short(fields[5]), *fields[6:]))

    def info(self) -> AuditInfo:
        log = self.log
        return AuditInfo(
            records=log.size, signed=log.checkpoints.size, kept=log.kept, trouble=log.trouble
        )

    def flush(self) -> bool:
        """False: not all is written, and there is no room for it now."""
        return self.log.flush()

    @property
    def is_safe(self) -> bool:
        """Whether what calls announced may leave the kernel."""
        return self.log.synced >= self.due


def _is_free(process: Process, row: Syscall) -> bool:
    """Whether an agent that may do nothing makes such records without end."""
    return row.right == "none" and process.kind != "client" and not process.tool


def short(text: str, most: int = TEXT) -> str:
    """`text`, or its beginning and a hash of all of it."""
    if len(text) <= most // 4 or len(text.encode()) <= most:
        return text
    digest = sha256(text.encode()).hexdigest()[:16]
    return text.encode()[: most - 17].decode(errors="ignore") + "~" + digest


@cache
def _getter(args: type[Message]) -> tuple[list[str], Callable[[Any], tuple[Any, ...]]]:
    names = [name for name in ABOUT if name in args.__struct_fields__]
    # Of one name attrgetter would give the value alone.
    return [f"{name}=" for name in names], attrgetter(*names, "__class__", "__class__")


def about(args: Message) -> str:
    """What a call is about, in a line: owner=/writer path=notes.txt."""
    names, get = _getter(type(args))
    found = []
    for name, value in zip(names, get(args), strict=False):
        if value is None or value == "":
            continue
        found.append(name + (quoted(value) if type(value) is str else _plain(value)))
    return in_a_line(found)


def in_a_line(fields: list[str]) -> str:
    """Put fields into one text; those that are longest are cut, so that none pushes out another."""
    said = " ".join(fields)
    if len(said) <= TEXT // 4:
        return said
    room = TEXT - len(fields) + 1
    shortest_first = sorted(range(len(fields)), key=lambda at: len(fields[at]))
    for left, at in zip(range(len(fields), 0, -1), shortest_first, strict=True):
        fields[at] = short(fields[at], room // left)
        room -= len(fields[at].encode())
    return " ".join(fields)


def _plain(value: Any) -> str:
    if type(value) in (dict, list):
        items = [each if type(each) is str else str(getattr(each, "path", each)) for each in value]
        # Each alone only where one may be in quotes: there may be a thousand.
        is_plain = not SEVERAL.search("".join(items))
        return ",".join(items if is_plain else map(quoted, items))
    return str(value)
