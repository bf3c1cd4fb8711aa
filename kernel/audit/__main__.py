"""Answer the requests of `aios audit` out of the folder alone; no kernel has to run.

    python -m aios.kernel.audit < REQUEST    (an AuditRequest as JSON)

On stdout one JSON object a line: any number of {"progress": ...} or {"record": ...}, then
{"report": ...}, or {"error": ...}.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from aios.syscalls.errors import AiosError, BadInput, NotFound

from . import prove
from .checkpoint import open_kept, public_key
from .read import Filter, entries, follow, last, one, plain
from .segment import Record
from .verify import known_keys, verify


class AuditRequest(Struct, frozen=True, kw_only=True):
    """One request of the command line."""

    action: Literal["tail", "follow", "search", "show", "verify", "prove", "grown", "check"]
    folder: str
    wanted: Filter = Filter()
    count: int = 20  # for tail
    sequence: int = 0  # for show, prove, grown
    receipts: list[tuple[int, str]] = []  # heads in hex
    key: str | None = None  # the key that counts; None: those of the folder
    checkpoint: str | None = None  # one that was kept elsewhere
    proof: str = ""


def write_line(kind: str, what: Any) -> None:
    sys.stdout.write(msgspec.json.encode({kind: what}).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=AuditRequest)
    try:
        write_line("report", ACTIONS[request.action](request, Path(request.folder)))
    except AiosError as error:
        write_line("error", error.to_wire())
    except OSError as error:
        write_line("error", BadInput(f"{request.folder}: {error.strerror}").to_wire())


def _tail(request: AuditRequest, folder: Path) -> None:
    known_keys(folder)  # raises if there is no log
    newest = [record.sequence for record in last(folder, 1, Filter())] or [-1]
    for record in last(folder, request.count, request.wanted):
        if record.sequence <= newest[0]:
            write_line("record", plain(record))
    if request.action == "follow":
        for record in follow(folder, newest[0] + 1):
            if request.wanted.matches(record):
                write_line("record", plain(record))


def _search(request: AuditRequest, folder: Path) -> None:
    known_keys(folder)
    for record, _, _ in entries(folder):
        if request.wanted.matches(record):
            write_line("record", plain(record))


def _show(request: AuditRequest, folder: Path) -> dict[str, Any]:
    known_keys(folder)
    record, _, chain = one(folder, request.sequence)
    return {"record": plain(record), "head": chain.hex(), "other": _other(folder, record)}


def _other(folder: Path, record: Record) -> dict[str, Any] | None:
    """Find the outcome of an intent, or the intent of an outcome."""
    if record.kind == "outcome" and record.intent:
        try:
            return plain(one(folder, record.intent)[0])
        except NotFound:  # it is not kept any more
            return None
    if record.kind == "intent":
        for later, _, _ in entries(folder, record.sequence):
            if later.kind == "outcome" and _ends(later, record):
                return plain(later)
    return None


def _ends(outcome: Record, intent: Record) -> bool:
    if outcome.intent:
        return outcome.intent == intent.sequence
    same = (outcome.pid, outcome.call_id, outcome.call)  # served by different kernels
    return same == (intent.pid, intent.call_id, intent.call)


def _verify(request: AuditRequest, folder: Path) -> Any:
    keys = [public_key(request.key)] if request.key else known_keys(folder)
    receipts = [(sequence, bytes.fromhex(head)) for sequence, head in request.receipts]
    kept = [] if request.checkpoint is None else [open_kept(request.checkpoint, keys)]

    def progress(done: int, total: int) -> None:
        write_line("progress", {"done": done, "total": total})

    return verify(folder, keys=keys, receipts=receipts, kept=kept, progress=progress)


def _prove(request: AuditRequest, folder: Path) -> dict[str, str]:
    make = prove.prove if request.action == "prove" else prove.prove_growth
    return {"proof": make(folder, request.sequence)}


def _check(request: AuditRequest, folder: Path) -> dict[str, Any]:
    keys = [public_key(request.key)] if request.key else known_keys(folder)
    return prove.check(request.proof, keys, request.checkpoint)


ACTIONS: dict[str, Any] = {
    "tail": _tail, "follow": _tail, "search": _search, "show": _show, "verify": _verify,
    "prove": _prove, "grown": _prove, "check": _check,
}  # fmt: skip

if __name__ == "__main__":
    main()
