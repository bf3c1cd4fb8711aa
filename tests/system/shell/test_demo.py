"""`aios demo`: the proof that it prints, and that it can fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import pytest
from commands import AIOS, LIMIT, environment, run_process
from conftest import left_of
from process_row import row
from rich.cells import cell_len
from rich.console import Console

from aios.agents import Aios, AiosError
from aios.shell.demo import measure as the_demo
from aios.shell.demo.jobs import JOBS, DemoJob, pick
from aios.shell.demo.measure import play
from aios.shell.demo.view import Report, Runner, live, summary
from aios.syscalls.kernel import AuditInfo, Event, Status
from aios.syscalls.llm import Result, Timings, Usage

STATUS = Status(
    version="0", abi=1, boot="", home="", os_pid=1, uptime=0.0, core="ready", core_error=None,
    core_restarts=0, model=None, slots=2, policy="rr", quantum=4, policies=["rr"], agents=0,
    contexts=0, running=0, ready=0, walls={},
    audit=AuditInfo(records=0, signed=0, kept=0, trouble=""),
)  # fmt: skip
RESULT = Result(
    text="a b", tokens=[1, 2], finish="length", digest="00",
    usage=Usage(prompt=3, completion=2, context=5),
    timings=Timings(
        waiting=0.1, prefill=0.2, decode=0.3, ttft=0.2, turnaround=0.6, switches=1
    ),
)  # fmt: skip


def printed(what: Any, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as text:
        console.print(what)
    return text.get()


def event(what: str, time: float, **detail: Any) -> Event:
    return Event(time=time, kind="generation", what=what, pid=1, detail=detail)


def test_more_agents_on_fewer_slots_are_identical(homes: Path) -> None:
    done = run_process(
        homes, "demo", "--json", "--agents", "4", "--slots", "2", "--max-tokens", "12",
        "--quantum", "4", limit=4 * LIMIT, TMPDIR=str(homes),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["agents"], report["slots"], report["identical"]) == (4, 2, 4)
    assert report["switches"] > 0
    for each in report["runs"]:
        assert each["identical"] is True
        assert each["result"]["digest"] == each["solo_digest"] is not None
        assert 0 < len(each["result"]["tokens"]) <= 12
    assert done.stderr.count("done: agent") == 4
    assert left_of(homes / "aios-demo-") == []
    assert list(homes.glob("aios-demo-*")) == []


def test_who_runs_alone_begins_from_nothing_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its prompt might be computed once for both, and the proof would prove nothing of it."""
    ran: list[tuple[Path, list[str]]] = []

    @contextmanager
    def system(settings: dict[str, Any]) -> Iterator[tuple[Path, Status]]:
        yield Path(f"/{len(ran)}"), STATUS

    @contextmanager
    def connected(home: Path, name: str) -> Iterator[Path]:
        yield home

    def played(home: Path, jobs: list[DemoJob], draw: Any) -> list[Runner]:
        ran.append((home, [job.name for job in jobs]))
        return [Runner(job, pid, result=RESULT) for pid, job in enumerate(jobs)]

    monkeypatch.setattr(the_demo, "temporary_system", system)
    monkeypatch.setattr(the_demo, "connect", connected)
    monkeypatch.setattr(the_demo, "play", played)
    report = the_demo.measure(pick(2, 12), {})
    names = [job.name for job in pick(2, 12)]
    assert ran == [(Path("/0"), names), (Path("/1"), names[:1]), (Path("/1"), names[1:])]
    assert report.identical == 2


def test_a_live_table_that_ctrl_c_ends(homes: Path) -> None:
    env = environment(homes) | {"TMPDIR": str(homes), "TERM": "xterm"}
    demo = pexpect.spawn(
        AIOS[0], [*AIOS[1:], "demo", "--agents", "4", "--slots", "2", "--max-tokens", "200"],
        env=env, timeout=LIMIT, encoding="utf-8", dimensions=(24, 80),
    )  # fmt: skip
    demo.expect_exact("4 agents on 2 slots, rr with quantum 16")
    demo.expect_exact("in a slot")
    demo.sendcontrol("c")
    demo.expect(pexpect.EOF)
    demo.close()
    assert demo.exitstatus == 130
    assert left_of(homes / "aios-demo-") == []
    assert list(homes.glob("aios-demo-*")) == []


def test_a_failing_agent_fails_the_demo(aios: Aios) -> None:
    jobs = [DemoJob("fine", "Hi", {"max_tokens": 2}), DemoJob("bad", "Hi", {"max_tokens": 0})]
    with pytest.raises(AiosError, match=r"\(bad\) ended with code 1") as error:
        play(aios, jobs, lambda _: None)
    assert "max_tokens" in error.value.hint


def test_a_bad_setting_leaves_nothing_behind(homes: Path) -> None:
    done = run_process(homes, "demo", "--agents", "1", "--policy", "none", TMPDIR=str(homes))
    assert (done.returncode, done.stdout) == (78, "")
    assert "no policy 'none'" in done.stderr
    assert list(homes.glob("aios-demo-*")) == []


@pytest.mark.parametrize(
    "change", [{"tokens": [1, 3]}, {"digest": "01"}, {"digest": None}], ids=str
)
def test_one_difference_is_seen(change: dict[str, Any]) -> None:
    same = Runner(JOBS[0], 1, result=RESULT, solo=RESULT)
    solo = msgspec.structs.replace(RESULT, **change)
    other = Runner(JOBS[1], 2, result=RESULT, solo=solo)
    report = Report(STATUS, [same, other], together=1.0)
    assert report.summary()["identical"] == 1
    text = printed(summary(report))
    narrow = printed(summary(report), width=40)
    assert narrow.count("AS ALONE") == 2  # a line for each agent, where rich left columns out
    assert "DIFFERS" in text
    assert "1 of 2 agents: output identical to a solo run" in text


def test_a_result_without_a_digest_proves_nothing() -> None:
    bare = msgspec.structs.replace(RESULT, digest=None)
    assert not Runner(JOBS[0], 1, result=bare, solo=bare).identical


def test_what_a_row_shows_while_it_runs() -> None:
    runner = Runner(JOBS[0], 1, tail="two\nlines")
    runner.take(event("queued", 10.0, prompt=7))
    assert runner.waited(11.0) == 1.0
    runner.take(event("dispatch", 12.0))
    runner.take(event("preempt", 13.0))
    assert (runner.state, runner.switches, runner.waited(13.5)) == ("waiting", 1, 2.5)
    text = printed(live(STATUS, [runner], 13.5, 80, 24))
    assert "1 agents on 2 slots, rr with quantum 4" in text
    assert "two lines" in text
    runner.take(event("length", 14.0))
    assert (runner.done, runner.waited(99.0)) == (True, 3.0)


def test_every_job_has_its_own_name_and_draw() -> None:
    jobs = pick(3 * len(JOBS), max_tokens=5)
    assert len({job.name for job in jobs}) == len(jobs)
    assert len({(job.prompt, repr(sorted(job.options.items()))) for job in jobs}) == len(jobs)
    assert all(job.options["max_tokens"] == 5 for job in jobs)


def crowd(count: int) -> list[Runner]:
    """Agents that have run for long, with words of any width."""
    runners = []
    for pid, job in enumerate(pick(count, max_tokens=72), start=3):
        info = row(pid, job.name)
        tail = "\u4e00\u4e8c\u4e09 and so on, " * 9 + "\x1b[2J"
        runner = Runner(job, pid, row=msgspec.structs.replace(info, tokens=1234), tail=tail)
        runner.take(event("queued", 10.0, prompt=7))
        runners.append(runner)
    return runners


@pytest.mark.parametrize("count", [1, 8, 21, 22, 64])
def test_the_table_fits_80_columns_and_24_lines(count: int) -> None:
    runners = crowd(count)
    runners[0].take(event("length", 11.0))
    lines = printed(live(STATUS, runners, 999.0, 80, 24)).splitlines()
    assert len(lines) <= 23  # the cursor's line is free
    assert all(cell_len(line.rstrip()) <= 80 for line in lines)
    rows = [line for line in lines[2:] if not line.startswith("and ")]
    ordered = runners if count <= 21 else sorted(runners, key=lambda r: r.done)
    assert [line.split()[1] for line in rows] == [r.job.name for r in ordered[: len(rows)]]
    if count > 21:
        assert lines[-1].startswith(f"and {count - len(rows)} more, 1 of them done")
    else:
        assert len(rows) == count
    assert all("and so on" in line and "\\x1b[2J" in line for line in rows)
