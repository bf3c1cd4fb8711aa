"""Record each call: who, what, on what object, by which rule, and with what outcome.

The content that agents exchange, as messages, prompts and values, is never in the log. A record has
a hash of the arguments, the object, and in words what changes rights (details.py).
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
from .coalesce import Coalescer, Fields
from .details import DESCRIBED, details, parts
from .log import RESERVE_RECORDS, AuditLog

MAX_TEXT_BYTES = 160  # of one text in a record
# Arguments that name the object of a call; maps give their keys, changes their paths.
OBJECT_FIELDS = (
    "owner", "principal", "pid", "ctx", "contexts", "call", "program", "name", "to", "sender",
    "signal", "space", "items", "keys", "changes", "upload", "path", "prefix", "version", "mode",
    "right", "on", "id", "answer", "target", "policy", "quantum", "nice", "kinds",
    "public", "person", "tools", "at_once",
)  # fmt: skip


class AuditRecorder:
    """Writes the kernel's records to the log."""

    def __init__(self, log: AuditLog) -> None:
        self.log = log
        self.due = 0  # this many records must be durable before calls leave the kernel
        self.unrecorded = 0  # refusals while there was no room
        self.coalescer = Coalescer(self._append, time.monotonic)
        if log.trouble:
            print(f"audit: {log.trouble}", file=sys.stderr, flush=True)
            self.note("audit.damaged", detail=log.trouble)
        if log.torn:
            self.note("audit.torn", detail=f"{log.torn} bytes cut off")

    # --- calls ------------------------------------------------------------------------------------

    def check_room(self, syscall: Syscall, process: Process | None) -> None:
        """Refuse a call that could not be recorded.

        The last of the room is for calls that end something, and the last of that for persons.

        Raises:
            DiskFull: the log cannot grow.
        """
        is_agent = process is not None and process.kind != "client"
        if syscall.allowed_when_full:
            needed = RESERVE_RECORDS // 8 if is_agent else 1
        else:
            needed = RESERVE_RECORDS if syscall.mutates else RESERVE_RECORDS // 2
        if not self.log.has_room(needed):
            raise DiskFull(f"the audit log cannot grow: {self.log.full}")
        if self.unrecorded:
            count, self.unrecorded = self.unrecorded, 0
            self.note("audit.unrecorded", detail=f"{count} refused calls")

    def called(
        self,
        process: Process,
        call_id: int,
        syscall: Syscall,
        args: Message,
        raw: msgspec.Raw,
        rule: str,
    ) -> Receipt:
        """Record a call before it is served: an intent if it changes something, else all there
        is.
        """
        kind = "intent" if syscall.mutates else "read"
        append = self.coalescer.add if _is_free(process, syscall) else self.log.append
        receipt = append(
            (process.pid, short(process.principal), kind, call_id, syscall.name, about(args),
             sha256(raw).digest(), short(rule), "", 0)
        )  # fmt: skip
        last = receipt[0]
        if type(args) in DESCRIBED:
            last = self.changed(process, call_id, syscall, last, details(args))
        if syscall.external:
            self.due = last + 1
        return receipt

    def changed(
        self, process: Process, call_id: int, syscall: Syscall, intent: int, text: str
    ) -> int:
        """Record in words what a call changes of rights. Return the sequence of the last record."""
        last = intent
        for part in parts(text, bound=process.kind != "client"):
            last, _ = self.log.append(
                (process.pid, short(process.principal), "note", call_id, syscall.name, part, b"",
                 "", "", intent)
            )  # fmt: skip
        return last

    def ended(
        self, process: Process, call_id: int, syscall: Syscall, intent: int, code: str
    ) -> Receipt:
        """Record the outcome of a call that changes something, before its final reply leaves."""
        append = self.coalescer.add if _is_free(process, syscall) else self.log.append
        return append(
            (process.pid, short(process.principal), "outcome", call_id, syscall.name, "", b"", "",
             code, intent)
        )  # fmt: skip

    def refused(
        self, process: Process | None, peer: str, call_id: int, name: str, raw: bytes,
        error: AiosError,
    ) -> Receipt | None:  # fmt: skip
        """Record a call that is not served; `peer` says whose connection it came by.

        Returns the receipt, maybe that of an equal record, or None on a full disk, where refusals
        are only counted.
        """
        if not self.log.has_room(RESERVE_RECORDS // 4):
            self.unrecorded += 1
            return None
        pid, principal = (0, "") if process is None else (process.pid, process.principal)
        rule = error.rule if isinstance(error, Denied) else ""
        return self.coalescer.add(
            (pid, short(principal), "denied", call_id, short(name), peer,
             sha256(raw).digest(), short(rule), error.code, 0)
        )  # fmt: skip

    # --- the kernel's own -------------------------------------------------------------------------

    def note(self, what: str, pid: int = 0, principal: str = "", detail: str = "") -> None:
        self.log.append((pid, short(principal), "note", 0, what, short(detail), b"", "", "", 0))

    def note_denied(self, what: str, pid: int, principal: str, detail: str) -> None:
        """Note a refusal that its cause could repeat without end."""
        self.coalescer.add((pid, short(principal), "note", 0, what, short(detail), b"", "", "", 0))

    def flush_counts(self) -> None:
        """Record what was only counted."""
        if self.log.has_room(len(self.coalescer.same)):
            self.coalescer.flush()

    def _append(self, fields: Fields) -> Receipt:
        return self.log.append((*fields[:5], short(fields[5]), *fields[6:]))

    def info(self) -> AuditInfo:
        log = self.log
        return AuditInfo(
            records=log.size, signed=log.checkpoints.size, kept=log.kept, trouble=log.trouble
        )

    def is_safe(self) -> bool:
        """Tell whether what calls announced may leave the kernel."""
        return self.log.synced >= self.due


def _is_free(process: Process, syscall: Syscall) -> bool:
    """Tell whether an agent could make such records without end."""
    return syscall.right == "none" and process.kind != "client" and not process.tool


def short(text: str, most: int = MAX_TEXT_BYTES) -> str:
    """Return the text, or its beginning and a hash of all of it."""
    if len(text) <= most // 4 or len(text.encode()) <= most:
        return text
    digest = sha256(text.encode()).hexdigest()[:16]
    return text.encode()[: most - 17].decode(errors="ignore") + "~" + digest


@cache
def _getter(args: type[Message]) -> tuple[list[str], Callable[[Any], tuple[Any, ...]]]:
    names = [name for name in OBJECT_FIELDS if name in args.__struct_fields__]
    # attrgetter returns no tuple for a single name.
    return [f"{name}=" for name in names], attrgetter(*names, "__class__", "__class__")


def about(args: Message) -> str:
    """Describe the object of a call in a line: owner=/writer path=notes.txt."""
    names, get = _getter(type(args))
    found = []
    for name, value in zip(names, get(args), strict=False):
        if value is None or value == "":
            continue
        found.append(name + (quoted(value) if type(value) is str else _plain(value)))
    return in_a_line(found)


def in_a_line(fields: list[str]) -> str:
    """Join fields; the longest ones are cut, so that none pushes out another."""
    said = " ".join(fields)
    if len(said) <= MAX_TEXT_BYTES // 4:
        return said
    room = MAX_TEXT_BYTES - len(fields) + 1
    shortest_first = sorted(range(len(fields)), key=lambda at: len(fields[at]))
    for left, at in zip(range(len(fields), 0, -1), shortest_first, strict=True):
        fields[at] = short(fields[at], room // left)
        room -= len(fields[at].encode())
    return " ".join(fields)


def _plain(value: Any) -> str:
    if type(value) in (dict, list):
        items = [each if type(each) is str else str(getattr(each, "path", each)) for each in value]
        # Quote items one by one only if one needs it: there may be a thousand.
        is_plain = not SEVERAL.search("".join(items))
        return ",".join(items if is_plain else map(quoted, items))
    return str(value)
