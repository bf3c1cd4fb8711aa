"""The views of the demo: the agents as they run, and the summary with the proof. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from aios.syscalls.kernel import Event, Status
from aios.syscalls.llm import Result
from aios.syscalls.proc import ProcessInfo

from .. import render
from ..escape import shown
from .jobs import DemoJob

WORDS = 44  # columns, at most, of the last words of an agent
RIGHT = ("pid", "tokens", "waiting", "turnaround", "ttft", "switches")
LIVE_TITLES = ("pid", "agent", "state", "tokens", "waiting", "switches", "last words")


@dataclass
class Runner:
    """One agent of the demo, and what is known of it."""

    job: DemoJob
    pid: int
    row: ProcessInfo | None = None
    tail: str = ""
    state: str = "starting"
    prompt: int = 0  # tokens
    switches: int = 0
    waiting: float = 0.0  # seconds until `since`
    since: float | None = None  # Unix time since when it waits for a slot
    result: Result | None = None
    solo: Result | None = None

    def take(self, event: Event) -> None:
        """Note what happened to its generation."""
        if self.since is not None:
            self.waiting += event.time - self.since
            self.since = None
        match event.what:
            case "queued":
                self.prompt = event.detail["prompt"]
                self.state, self.since = "waiting", event.time
            case "preempt":
                self.switches += 1
                self.state, self.since = "waiting", event.time
            case "dispatch":
                self.state = "in a slot"
            case _:
                self.state = "done"

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def tokens(self) -> int:
        """Generated so far."""
        return max(0, self.row.tokens - self.prompt) if self.row is not None else 0

    @property
    def identical(self) -> bool:
        """True if the output beside the others is bit for bit the output alone."""
        if self.result is None or self.solo is None or self.result.digest is None:
            return False
        return (self.result.tokens, self.result.digest) == (self.solo.tokens, self.solo.digest)

    def waited(self, now: float) -> float:
        return self.waiting + (now - self.since if self.since is not None else 0.0)

    def line(self) -> str:
        return f"agent {self.pid} {self.job.name}: {self.tokens} tokens, {self.switches} switches"


@dataclass
class Report:
    status: Status
    runners: list[Runner]
    together: float  # seconds, all at once

    @property
    def identical(self) -> int:
        return sum(runner.identical for runner in self.runners)

    def summary(self) -> dict[str, Any]:
        """Return the output of `--json`; times in seconds."""
        results = [runner.result for runner in self.runners if runner.result is not None]
        tokens = sum(result.usage.completion for result in results)
        return {
            "agents": len(self.runners),
            "slots": self.status.slots,
            "policy": self.status.policy,
            "quantum": self.status.quantum,
            "model": self.status.model.description if self.status.model else "",
            "identical": self.identical,
            "switches": sum(result.timings.switches for result in results),
            "tokens": tokens,
            "seconds": self.together,
            "tokens_per_second": tokens / self.together,
            "runs": [
                {"pid": runner.pid, "name": runner.job.name, "identical": runner.identical,
                 "result": runner.result, "solo_digest": runner.solo and runner.solo.digest}
                for runner in self.runners
            ],
        }  # fmt: skip


def heading(status: Status) -> str:
    return f"agents on {status.slots} slots, {status.policy} with quantum {status.quantum}"


def live(status: Status, runners: Sequence[Runner], now: float, width: int, height: int) -> Group:
    """Show each agent in a line, within `width` columns and `height` lines. If there are too many,
    those that are not done come first, and the others are counted."""
    room = height - 3  # below the heading and the titles, and above the cursor
    listed, rest = list(runners), ""
    if len(runners) > room:
        listed = sorted(runners, key=lambda r: r.done)[: room - 1]
        others = sum(r.done for r in runners) - sum(r.done for r in listed)
        rest = f"and {len(runners) - len(listed)} more, {others} of them done"
    cells = [
        [r.pid, r.job.name, r.state, r.tokens, f"{r.waited(now):.1f} s", r.switches]
        for r in listed
    ]  # fmt: skip
    taken = sum(
        max(len(str(cell)) for cell in column) + 2
        for column in zip(*cells, LIVE_TITLES[:-1], strict=True)
    )
    words = max(0, min(WORDS, width - taken))
    rows = [[*row, last_words(r.tail, words)] for row, r in zip(cells, listed, strict=True)]
    head = Text(f"{len(runners)} {heading(status)}", style="bold")
    table = render.columns(LIVE_TITLES, rows, right=RIGHT)
    table.least = 0  # it is to be as high as `height`: where it is narrow, columns are left out
    return Group(head, table, *([rest] if rest else []))


def last_words(text: str, width: int) -> str:
    """Return the end of `text` in one line of at most `width` columns."""
    line = shown(" ".join(text.split()))[-width:] if width else ""
    while cell_len(line) > width:
        line = line[1:]
    return line


def summary(report: Report) -> Group:
    titles = ["pid", "agent", "tokens", "waiting", "turnaround", "ttft", "switches", "as alone"]
    rows = [
        [r.pid, r.job.name, len(r.result.tokens), *(render.seconds(value) for value in (
            r.result.timings.waiting, r.result.timings.turnaround, r.result.timings.ttft)),
         r.result.timings.switches, "identical" if r.identical else "DIFFERS"]
        for r in report.runners if r.result is not None
    ]  # fmt: skip
    figures = report.summary()
    return Group(
        render.columns(titles, rows, right=RIGHT),
        Text(
            f"\n{figures['tokens']} tokens in {report.together:.1f} s, "
            f"{figures['tokens_per_second']:.0f} tokens/s (times in seconds)"
        ),
        Text(
            f"{report.identical} of {len(report.runners)} agents: output identical to a solo run "
            "(token ids and logits digest)", style="bold",
        ),
    )  # fmt: skip
