"""Tables and lines out of what the kernel answers. Pure: nothing is read or printed here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from aios.syscalls.acc import GrantRow
from aios.syscalls.kernel import Event, ModelInfo, Stats, Status, Summary
from aios.syscalls.llm import ContextInfo
from aios.syscalls.mem import Interaction, Memory
from aios.syscalls.proc import Exited, ProcessInfo
from aios.syscalls.sto import Hits, Version

from .escape import as_json_text, brief, shown

Shape = Literal["short", "all", "long"]
FOLDS = 12  # columns that a cell has at least, where a table is folded to fit the terminal


class Listing(Table):
    """A table that takes at least so many columns of the terminal: in a narrower one, where rich
    would leave columns out, it is no table."""

    least = 0
    cells: Sequence[Sequence[Text]] = ()

    def __rich_console__(self, console: Any, options: ConsoleOptions) -> RenderResult:
        if options.max_width < self.least:
            yield self._stacked()
        else:
            yield from super().__rich_console__(console, options)

    def _stacked(self) -> Group:
        """Put each cell on a line of its own, behind its title."""
        titles = [Text(str(column.header)) for column in self.columns]
        parts: list[RenderableType] = []
        for row in self.cells:
            parts += [Text()] * bool(parts)
            parts.append(
                _beside((title, cell) for title, cell in zip(titles, row, strict=True) if cell)
            )
        return Group(*(parts or [Text("none")]))


def columns(
    titles: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> Listing:
    """Make a table without lines. No cell is cut: wide ones are folded."""
    cells = [[Text(shown(str(cell))) for cell in row] for row in rows]
    table = Listing(box=None, pad_edge=False, header_style="bold")
    table.cells = cells
    for at, title in enumerate(titles):
        widest = max([len(title), *(row[at].cell_len for row in cells)])
        number = title in right
        least = widest if number else min(widest, FOLDS)
        table.least += least + 2 * (at > 0)
        table.add_column(
            title.upper(), justify="right" if number else "left", overflow="fold",
            no_wrap=number, min_width=least,
        )  # fmt: skip
    for row in cells:
        table.add_row(*row)
    return table


def pairs(rows: Iterable[tuple[str, object]]) -> Table:
    return _beside((Text(shown(name)), Text(shown(str(cell), lines=True))) for name, cell in rows)


def _beside(rows: Iterable[tuple[Text, Text]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def date_and_time(unix_time: float) -> str:
    return datetime.fromtimestamp(unix_time).strftime("%F %T")


def age(seconds: float) -> str:
    """Return a span of time in its largest unit: 45 s, 12 min, 3.5 h, 2.1 days."""
    for name, length in (("days", 86400), ("h", 3600)):
        if seconds >= length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def in_tree(rows: Sequence[ProcessInfo]) -> list[ProcessInfo]:
    """Return the rows, each behind its parent, if that is among them."""
    pids = {row.pid for row in rows}
    below = defaultdict(list)
    for row in rows:
        below[row.parent if row.parent in pids else 0].append(row)
    found: list[ProcessInfo] = []
    waiting = below.pop(0, [])[::-1]
    while waiting:
        found.append(waiting.pop())
        waiting += below.pop(found[-1].pid, [])[::-1]
    return found


def processes(rows: Sequence[ProcessInfo], shape: Shape = "short", *, tree: bool = False) -> Table:
    """Make a table of processes. "short" and "all", which says how the dead ended, fit into 80
    columns."""
    depth: dict[int, int] = {}
    for p in rows:
        depth[p.pid] = depth.get(p.parent, -1) + 1
    known: list[dict[str, object]] = [
        {"pid": p.pid, "name": "  " * depth[p.pid] * tree + p.name, "state": p.state,
         "age": age(p.age), "cpu": f"{p.cpu:.1f} s", "memory": decimal(p.memory),
         "tokens": p.tokens, "kind": p.kind, "code": "" if p.code is None else p.code,
         "reason": p.reason, "parent": p.parent, "nice": p.nice, "ctx": p.contexts,
         "mail": p.queue, "waiting": f"{p.waiting:.2f} s", "turnaround": f"{p.turnaround:.2f} s",
         "ttft": "" if p.ttft is None else f"{p.ttft:.2f} s", "switches": p.switches,
         "tool": p.tool, "principal": p.principal}
        for p in rows
    ]  # fmt: skip
    titles = {
        "short": ["pid", "name", "state", "age", "cpu", "memory", "tokens"],
        "all": ["pid", "name", "kind", "state", "age", "tokens", "code", "reason"],
        "long": ["pid", "parent", "name", "kind", "state", "nice", "age", "cpu", "memory", "ctx",
                 "mail", "tokens", "waiting", "turnaround", "ttft", "switches", "code", "reason",
                 "tool", "principal"],
    }[shape]  # fmt: skip
    words = ("name", "kind", "state", "reason", "tool", "principal")
    right = [title for title in titles if title not in words]
    return columns(titles, [[row[title] for title in titles] for row in known], right=right)


def contexts(rows: Sequence[ContextInfo]) -> Table:
    titles = ["ctx", "owner", "pid", "name", "state", "used", "when full", "checkpoints"]
    cells = [
        [c.ctx, c.owner, c.pid or "", c.name or "", c.state, c.used, c.on_full,
         " ".join(c.checkpoints)]
        for c in rows
    ]  # fmt: skip
    return columns(titles, cells, right=["ctx", "pid", "used"])


def memories(rows: Sequence[Memory]) -> Table:
    """Make a table with a row for each space."""
    titles = ["agent", "pid", "kept", "space", "items", "bytes", "of", "in RAM"]
    cells = [
        [m.principal or "(a client)", m.pid or "", "yes" if m.keep else "", space.name, space.count,
         decimal(space.bytes), "" if m.limit is None else decimal(m.limit),
         decimal(m.resident_bytes)]
        for m in rows
        for space in m.spaces
    ]  # fmt: skip
    return columns(titles, cells, right=["pid", "items", "bytes", "of", "in RAM"])


def interactions(rows: Sequence[Interaction]) -> Table:
    cells = []
    for entry in rows:
        at = datetime.fromtimestamp(entry.time).strftime("%H:%M:%S")
        if entry.kind == "generation":
            prompt = entry.prompt[-1].content if entry.prompt else ""
            what = f"{brief(prompt)} -> {brief(str(entry.answer))} ({entry.finish})"
        else:
            to = "to" if entry.kind == "sent" else "from"
            what = f"{to} {entry.name}: {brief(value(entry.body))}"
        cells.append([entry.turn, at, entry.pid, entry.kind, what])
    return columns(["turn", "time", "pid", "kind", "what"], cells, right=["turn", "pid"])


def grants(rows: Sequence[GrantRow]) -> Table:
    titles = ["id", "from", "to", "right", "on", "args", "expires"]
    cells = [
        [g.id, g.giver or "a person", g.to, g.right, " ".join(g.on),
         as_json_text(g.args, indent=-1) if g.args else "-",
         "-" if g.expires is None else date_and_time(g.expires)]
        for g in rows
    ]  # fmt: skip
    return columns(titles, cells, right=["id"])


def versions(rows: Sequence[Version]) -> Table:
    titles = ["path", "owner", "version", "what", "size", "time", "by", "tags"]
    cells = [
        [v.path, v.owner or "-", v.version, v.what, decimal(v.size),
         date_and_time(v.time), v.by or "-", " ".join(v.tags)]
        for v in rows
    ]  # fmt: skip
    return columns(titles, cells, right=["version", "size"])


def hits(found: Hits) -> Group:
    """Show each passage below its source."""
    parts: list[RenderableType] = []
    for hit in found.hits:
        source = f"{hit.owner or 'a person'}:{hit.path}, version {hit.version} ({hit.score:.2f})"
        passage = Text(shown(hit.text, lines=True), overflow="fold")
        parts += [Text(shown(source), style="bold"), Padding(passage, (0, 0, 1, 2))]
    if not found.hits:
        parts = [Text("nothing was found")]
    if found.behind:
        parts.append(Text(f"not indexed yet: {counted(found.behind, 'change')}"))
    return Group(*parts)


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
        ("core", f"{core}, restarted {counted(answer.core_restarts, 'time')}"),
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
        ("agents", f"{answer.agents}, with {counted(answer.contexts, 'context')}"),
        ("generations", f"{answer.running} running, {answer.ready} waiting for a slot"),
        ("walls", ", ".join(name for name, how in answer.walls.items() if how)),
        ("audit log", f"{counted(answer.audit.records, 'record')}, {answer.audit.signed} signed"),
    ]  # fmt: skip
    missing = [name for name, how in answer.walls.items() if not how]
    if missing:
        rows.append(("", f"this Linux has no wall for {', '.join(missing)}: docs/walls.md"))
    if answer.gateway != "off":
        error = answer.gateway_error
        rows.append(("gateway", answer.gateway if error is None else error["message"]))
    rows += [("missing", f"{what}: {how}") for what, how in answer.missing.items()]
    if answer.audit.trouble:
        rows.append(("", f"DAMAGED: {answer.audit.trouble}; see `aios audit verify`"))
    return pairs(rows)


def fitted(model: ModelInfo) -> list[tuple[str, object]]:
    """Describe how the loaded file was made; nothing for an original that was asked for."""
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
    return shown(f"{at} {what.kind} {what.what} {what.pid or ''} {detail}".rstrip())


def ending(end: Exited) -> str:
    name, reason = shown(end.name), shown(end.reason)
    lost = f"; {end.output_lost:,} bytes that it printed are lost, the disk is full"
    return (
        f"process {end.pid} ({name}) ended with code {end.code}: {reason}"
        f"{lost if end.output_lost else ''}"
    )


def value(result: Any) -> str:
    """Render the result of an agent: text as it is, anything else as JSON."""
    return result if isinstance(result, str) else as_json_text(result)


def bench(measured: dict[str, Any]) -> Table:
    """Make a table with a row for each figure of either side, and its bound."""
    ours, peer, targets = measured["ours"], measured["peer"], measured.get("targets", {})

    def bound(name: str, figure: object, sign: str = "") -> str:
        return f"{sign}{figure}{' missed' if name in measured['missed'] else ''}"

    rows = [
        (name, ours.get(name, "-"), peer.get(name, "-"), bound(name, targets.get(name, "")))
        for name in {**ours, **peer}
    ]
    sign = ">= " if measured["at_least"] else "<= "
    rows.append(("ratio", measured["ratio"], "", bound("ratio", measured["target"], sign)))
    return columns([measured["bench"], "ours", "peer", "target"], rows)
