"""Tables and lines out of what the kernel answers. Pure: nothing is read or printed here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from aios.syscalls.mem import Interaction, Memory
from aios.syscalls.messages import (
    ContextInfo,
    Event,
    Exited,
    ModelInfo,
    ProcessInfo,
    Stats,
    Status,
    Summary,
)
from aios.syscalls.retrieval import Hits
from aios.syscalls.sto import Version


def columns(
    titles: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> Table:
    """A table without lines. Cells are shown as they are: an agent's text is no markup."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title.upper(), justify="right" if title in right else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def pairs(rows: Iterable[tuple[str, object]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, cell in rows:
        table.add_row(name, Text(str(cell)))
    return table


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def processes(rows: Sequence[ProcessInfo], *, everything: bool = False) -> Table:
    titles = ["pid", "parent", "name", "state", "nice", "age", "cpu", "memory", "ctx", "mail",
              "tokens", "waiting", "turnaround", "ttft", "switches"]  # fmt: skip
    cells: list[list[object]] = [
        [p.pid, p.parent, p.name, p.state, p.nice, f"{p.age:.0f} s", f"{p.cpu:.2f} s",
         decimal(p.memory), p.contexts, p.queue, p.tokens, f"{p.waiting:.2f} s",
         f"{p.turnaround:.2f} s", "" if p.ttft is None else f"{p.ttft:.2f} s", p.switches]
        for p in rows
    ]  # fmt: skip
    right = [title for title in titles if title not in ("name", "state")]
    if everything:
        titles += ["kind", "code", "reason"]
        for row, p in zip(cells, rows, strict=True):
            row += [p.kind, "" if p.code is None else p.code, p.reason]
    return columns(titles, cells, right=right)


def contexts(rows: Sequence[ContextInfo]) -> Table:
    titles = ["ctx", "owner", "pid", "name", "state", "used", "when full", "checkpoints"]
    cells = [
        [c.ctx, c.owner, c.pid or "", c.name or "", c.state, c.used, c.on_full,
         " ".join(c.checkpoints)]
        for c in rows
    ]  # fmt: skip
    return columns(titles, cells, right=["ctx", "pid", "used"])


def memories(rows: Sequence[Memory]) -> Table:
    """One row a space."""
    titles = ["agent", "pid", "kept", "space", "items", "bytes", "of", "in RAM"]
    cells = [
        [m.principal or "(a client)", m.pid or "", "yes" if m.keep else "", space.name, space.count,
         decimal(space.bytes), "" if m.limit is None else decimal(m.limit),
         decimal(m.resident_bytes)]
        for m in rows
        for space in m.spaces
    ]  # fmt: skip
    return columns(titles, cells, right=["pid", "items", "bytes", "of", "in ram"])


def interactions(rows: Sequence[Interaction]) -> Table:
    cells = []
    for entry in rows:
        at = datetime.fromtimestamp(entry.time).strftime("%H:%M:%S")
        if entry.kind == "generation":
            prompt = entry.prompt[-1].content if entry.prompt else ""
            what = f"{line(prompt)} -> {line(entry.answer)} ({entry.finish})"
        else:
            what = f"{'to' if entry.kind == 'sent' else 'from'} {entry.name}: {line(entry.body)}"
        cells.append([entry.turn, at, entry.pid, entry.kind, what])
    return columns(["turn", "time", "pid", "kind", "what"], cells, right=["turn", "pid"])


def line(content: Any, longest: int = 60) -> str:
    """A value in one line, cut."""
    text = content if isinstance(content, str) else msgspec.json.encode(content).decode()
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def versions(rows: Sequence[Version]) -> Table:
    titles = ["path", "owner", "version", "what", "size", "time", "by", "tags"]
    cells = [
        [v.path, v.owner or "-", v.version, v.what, decimal(v.size),
         datetime.fromtimestamp(v.time).strftime("%F %T"), v.by or "-", " ".join(v.tags)]
        for v in rows
    ]  # fmt: skip
    return columns(titles, cells, right=["version", "size"])


def hits(found: Hits) -> Group:
    """Each passage below its source."""
    shown: list[Any] = []
    for hit in found.hits:
        source = f"{hit.owner or 'a person'}:{hit.path}, version {hit.version}"
        shown += [Text(f"{source} ({hit.score:.2f})", style="bold"), Text(hit.text), ""]
    if not found.hits:
        shown = [Text("nothing was found")]
    if found.behind:
        shown.append(Text(f"{found.behind} changes are not indexed yet"))
    return Group(*shown)


def ready_line(answer: Status) -> str:
    assert answer.model is not None, "a system that is ready has a model"
    return (
        f"ready: {answer.model.description}, {answer.slots} slots of {answer.model.window} tokens,"
        f" {answer.policy} with quantum {answer.quantum}, {exactness(answer)}; home {answer.home}"
    )


def exactness(answer: Status) -> str:
    if answer.model is None:
        return "not known yet"
    if answer.model.certified == 0:
        return "not exact"
    cost = answer.model.exact_cost
    at = f" (at {cost:.2f} times the time of a full batch)" if cost is not None else ""
    return f"exact up to {answer.model.certified} at once{at}"


def status(answer: Status) -> Table:
    core = answer.core if answer.core_error is None else answer.core_error["message"]
    rows: list[tuple[str, object]] = [
        ("aios", f"{answer.version}, ABI {answer.abi}, boot {answer.boot}"),
        ("home", answer.home),
        ("kernel", f"process {answer.os_pid}, up {answer.uptime:.0f} s"),
        ("core", f"{core}, restarted {answer.core_restarts} times"),
    ]
    if answer.model is not None:
        model = answer.model
        rows += [
            ("model", model.path),
            ("", f"{model.description}, {model.params / 1e6:.0f} M parameters, {model.engine}"),
            *fitted(model),
            ("context", f"{answer.slots} slots of {model.window} tokens, "
                        f"{decimal(model.cache_bytes)} of KV cache, {model.cache}"),
            ("exactness", exactness(answer)),
        ]  # fmt: skip
        if model.cache != "f16":
            rows.append(("", f"with keys and values in {model.cache}: not the output of f16"))
        if not model.paged:
            rows.append(("", "no snapshots of this model: what leaves its slot is computed again"))
    rows += [
        ("policy", f"{answer.policy}, quantum {answer.quantum} tokens"
                   f" (of {', '.join(answer.policies)})"),
        ("agents", f"{answer.agents}, with {answer.contexts} contexts"),
        ("generations", f"{answer.running} running, {answer.ready} waiting for a slot"),
        ("walls", ", ".join(name for name, how in answer.walls.items() if how)),
        ("audit log", f"{answer.audit.records} records, {answer.audit.signed} signed"),
    ]  # fmt: skip
    missing = [name for name, how in answer.walls.items() if not how]
    if missing:
        rows.append(("", f"this Linux has no wall for {', '.join(missing)}: docs/walls.md"))
    if answer.audit.trouble:
        rows.append(("", f"DAMAGED: {answer.audit.trouble}; see `aios audit verify`"))
    return pairs(rows)


def fitted(model: ModelInfo) -> list[tuple[str, object]]:
    """How the file that is loaded came to be; nothing about an original that was asked for."""
    if model.refused:
        return [("fitted", f"no: {model.refused}")]
    if model.fitted is None:
        return []
    made = model.fitted
    return [
        ("fitted", f"{made.format} of {made.original}"),
        ("", f"mean KL {made.kl:.4f} nats a token, same likeliest token after {made.same_top:.1%}"),
    ]


def stats(answer: Stats) -> Table:
    counters = [
        ("generations", answer.generations),
        ("tokens", f"{answer.prompt_tokens} prefilled, {answer.completion_tokens} generated, "
                   f"in {answer.steps} decode steps"),
        ("switches", f"{answer.switches}: {answer.saves} saved, {answer.restores} restored, "
                     f"{answer.replayed} tokens replayed, {answer.shared} shared"),
        ("snapshots", f"{answer.extents} extents: {decimal(answer.snapshot_bytes)} in RAM, "
                      f"{decimal(answer.disk_bytes)} on disk; {decimal(answer.written)} written, "
                      f"{decimal(answer.read)} read"),
        ("", f"{answer.lost} lost for want of room, {answer.bad_snapshots} damaged, "
             f"{answer.disk_failures} failures of the disk"),
        ("memory", f"{decimal(answer.mem_resident)} in RAM; {answer.mem_evicted} items moved out, "
                   f"{answer.mem_fetched} came back"),
        ("store", f"{answer.commits} commits"),
    ]  # fmt: skip
    timings = [
        (name, summary(value))
        for name, value in (
            ("waiting", answer.waiting), ("turnaround", answer.turnaround), ("ttft", answer.ttft),
        )
    ]  # fmt: skip
    return pairs(
        [*counters, *timings, ("calls", counts(answer.calls)), ("errors", counts(answer.errors))]
    )


def summary(value: Summary) -> str:
    return (
        f"mean {value.mean:.3f} s, median {value.p50:.3f}, p99 {value.p99:.3f}, max {value.max:.3f}"
    )


def counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {numbers[name]}" for name in sorted(numbers)) or "none"


def event(what: Event) -> str:
    at = datetime.fromtimestamp(what.time).strftime("%H:%M:%S.%f")[:-3]
    detail = " ".join(f"{name}={value}" for name, value in what.detail.items())
    return f"{at} {what.kind} {what.what} {what.pid or ''} {detail}".rstrip()


def ending(end: Exited) -> str:
    return f"process {end.pid} ({end.name}) ended with code {end.code}: {end.reason}"


def value(result: Any) -> str:
    """What an agent returned: text as it is, anything else as JSON."""
    if isinstance(result, str):
        return result
    return msgspec.json.format(msgspec.json.encode(result), indent=2).decode()


def bench(measured: dict[str, Any]) -> Table:
    """One row for each figure that either side has."""
    ours, peer = measured["ours"], measured["peer"]
    rows = [(name, ours.get(name, "-"), peer.get(name, "-")) for name in {**ours, **peer}]
    rows.append(("ratio", measured["ratio"], f"target {measured['target']}"))
    return columns([measured["bench"], "ours", "peer"], rows)
