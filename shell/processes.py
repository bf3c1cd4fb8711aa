"""The commands about agents: start them, list them, signal them, wait for them, read their logs."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from aios.agents import Aios, connect
from aios.agents.runner import registered
from aios.syscalls.errors import NotFound, ProcessGone, TimedOut
from aios.syscalls.messages import Exited, Limits, LogPart, Reach

from . import render
from .access import manifest
from .completion import live_pids, log_names, programs
from .output import json_option, show
from .questions import asking_in_place

GRACE = 2.0  # seconds that an agent has between TERM and KILL
LOG_WAIT = 30.0  # seconds that one call waits for more of a log
LOOK = 0.2  # seconds between two looks at a log file
READABLE = click.Path(exists=True, resolve_path=True, path_type=str)
LOG_FILES = {"kernel": "log/kernel.log", "core": "log/core.log", "init": "init.log"}


def parse_limits(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """`tokens=1000` and the like, checked against the ABI's table."""
    wanted = {name: value for name, _, value in (item.partition("=") for item in given)}
    try:
        limits = msgspec.convert(wanted, Limits, strict=False)
    except msgspec.ValidationError as error:
        names = ", ".join(Limits.__struct_fields__)
        raise click.BadParameter(f"{error}; NAME=NUMBER, of {names}") from error
    return {name: getattr(limits, name) for name in wanted}


def spawn_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `run` and `spawn` share."""
    for decorate in (
        click.option("--limit", "limits", multiple=True, callback=parse_limits,
                     metavar="NAME=NUMBER", help="A limit, as tokens=1000; may be repeated."),
        click.option("--manifest", type=click.Path(path_type=Path, dir_okay=False, exists=True),
                     callback=manifest, help="TOML: what it may do; see docs/access.md."),
        click.option("--read", multiple=True, type=READABLE, metavar="PATH",
                     help="A file or folder it may read, as those that the task names."),
        click.option("--write", multiple=True, type=READABLE, metavar="PATH",
                     help="A file or folder it may read and write."),
        click.option("--port", "ports", multiple=True, type=click.IntRange(1, 65535),
                     help="A TCP port it may connect to."),
        click.option("--processes", is_flag=True, help="It may start processes of its own."),
        click.option("--nice", type=int, help="-20 to 19; a smaller one gets longer turns."),
        click.option("--name", help="What to list it as."),
        click.option("--task-json", metavar="JSON", help="The task, when it is not a string."),
        click.argument("task", nargs=-1),
        click.argument("program", shell_complete=programs),
    ):  # fmt: skip
        command = decorate(command)
    return command


def as_request(
    program: str, task: tuple[str, ...], task_json: str | None, limits: dict[str, Any],
    read: tuple[str, ...], write: tuple[str, ...], ports: tuple[int, ...], processes: bool,
    **rest: Any,
) -> dict[str, Any]:  # fmt: skip
    """The arguments of Aios.spawn. An agent takes one task, an executable any arguments; files
    that are named so are theirs to read."""
    is_path = "/" in program or program.endswith(".py")
    named = [str(Path(word).absolute()) for word in task if is_file(word)]
    request = rest | {
        "reach": Reach(
            read=[*read, *named], write=list(write), ports=list(ports), processes=processes
        ),
        "program": str(Path(program).absolute()) if is_path else program,
        "limits": limits or None,
        "cwd": str(Path.cwd()),
    }
    if is_path and not program.endswith(".py"):
        return request | {"args": task}
    if len(task) + (task_json is not None) > 1:
        raise click.UsageError("an agent takes one TASK, or --task-json: quote it")
    if task_json is None:
        return request | {"task": task[0] if task else None}
    try:
        return request | {"task": msgspec.json.decode(task_json)}
    except msgspec.DecodeError as error:
        raise click.BadParameter(str(error), param_hint="--task-json") from error


def is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # too long for a name, or no name at all
        return False


@click.command()
@spawn_options
@json_option
@click.pass_obj
def run(home: Path, /, as_json: bool, **given: Any) -> int:
    """Run an agent, and exit with its code.

    Its log is printed as it comes, then its result.

    PROGRAM is a registered name (see `aios agents`), a .py file that defines an Agent, or an
    executable. Ctrl-C ends the agent. With --json the log goes to stderr.
    What a rule asks about is asked in the terminal.

    \b
    Examples:
      aios run summarize notes.txt --limit tokens=20000
      aios run ./my_agent.py --task-json '{"depth": 2}' --json
      aios run ./tool -- --an-option-of-the-tool
    """
    with connect(home, "aios-run") as aios:
        pid = aios.spawn(**as_request(**given))
        try:
            copy(agent_log(aios, pid, follow=True, meanwhile=asking(aios, pid)), err=as_json)
            end = aios.wait(pid)
        except (KeyboardInterrupt, click.Abort):
            finish_off(aios, pid)
            raise
    report(end, as_json)
    return end.code


def asking(aios: Aios, pid: int) -> Callable[[], None]:
    """Where nobody sits at a terminal, `aios policy ask` may run elsewhere."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        return asking_in_place(aios, pid)
    return lambda: None


def copy(parts: Iterator[bytes], *, err: bool) -> None:
    """Print a log, and end its last line if the agent did not."""
    last = b"\n"
    for part in parts:
        click.echo(part, nl=False, err=err)
        last = part[-1:] or last
    if last != b"\n":
        click.echo(err=err)


def report(end: Exited, as_json: bool) -> None:
    if as_json or end.result is not None:
        show(end, as_json, render.value(end.result))
    if end.code and not as_json:
        click.echo(f"aios: {render.ending(end)}", err=True)


def finish_off(aios: Aios, pid: int) -> None:
    """TERM; KILL if that does not help in time, or at another Ctrl-C."""
    with contextlib.suppress(ProcessGone):
        aios.kill(pid, "TERM")
        try:
            aios.wait(pid, timeout=GRACE)
        except (TimedOut, KeyboardInterrupt):
            aios.kill(pid, "KILL")
            aios.wait(pid)


@click.command()
@spawn_options
@json_option
@click.pass_obj
def spawn(home: Path, /, as_json: bool, **given: Any) -> None:
    """Start an agent and print its PID.

    It runs on by itself. The arguments are those of `aios run`.

    \b
    Example:
      aios spawn chat --name helper
    """
    with connect(home, "aios-spawn") as aios:
        pid = aios.spawn(**as_request(**given))
    show({"pid": pid}, as_json, str(pid))


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Clients and the dead as well.")
@json_option
@click.pass_obj
def ps(home: Path, everything: bool, as_json: bool) -> None:
    """List the agents that are alive.

    \b
    Examples:
      aios ps
      aios ps --all --json
    """
    with connect(home, "aios-ps") as aios:
        rows = aios.ps(all=everything)
    show(rows, as_json, render.processes(rows, everything=everything))


@click.command()
@click.option(
    "--signal", "-s", type=click.Choice(["TERM", "KILL", "STOP", "CONT"], case_sensitive=False),
    default="TERM", show_default=True,
)  # fmt: skip
@click.argument(
    "pids", nargs=-1, required=True, type=int, metavar="PID...", shell_complete=live_pids
)
@click.pass_obj
def kill(home: Path, signal: Any, pids: tuple[int, ...]) -> None:
    """Send a signal to agents. STOP halts an agent and its generation; CONT lets them go on.

    \b
    Examples:
      aios kill 12
      aios kill -s STOP 12 13
    """
    with connect(home, "aios-kill") as aios:
        for pid in pids:
            aios.kill(pid, signal)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("value", type=int)
@click.argument("pid", type=int, shell_complete=live_pids)
@json_option
@click.pass_obj
def nice(home: Path, value: int, pid: int, as_json: bool) -> None:
    """Set how much of the model an agent gets.

    VALUE is -20 (the longest turns) to 19 (the shortest).

    \b
    Example:
      aios nice -5 12
    """
    with connect(home, "aios-nice") as aios:
        now = aios.nice(value, pid)
    show({"pid": pid, "nice": now}, as_json, f"process {pid} has the nice value {now}")


@click.command()
@click.argument(
    "pids", nargs=-1, required=True, type=int, metavar="PID...", shell_complete=live_pids
)
@click.option("--timeout", type=float, help="Seconds to wait at most.")
@json_option
@click.pass_obj
def wait(home: Path, pids: tuple[int, ...], timeout: float | None, as_json: bool) -> int:
    """Wait for agents to end.

    The exit code is that of the last one named.

    \b
    Examples:
      aios wait 12
      aios wait 12 13 --timeout 60 --json
    """
    with connect(home, "aios-wait") as aios:
        calls = [aios.start("proc.wait", pid=pid, timeout=timeout) for pid in pids]
        ends = [msgspec.convert(call.wait(), Exited) for call in calls]
    show(ends, as_json, "\n".join(render.ending(end) for end in ends))
    return ends[-1].code


@click.command()
@click.argument("who", metavar="PID|kernel|core|init", shell_complete=log_names)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until it ends.")
@click.option("--lines", "-n", type=click.IntRange(min=0), help="Begin with the last so many.")
@json_option
@click.pass_obj
def logs(home: Path, who: str, follow: bool, lines: int | None, as_json: bool) -> None:
    """Print the log of an agent, or of the system.

    That of an agent is what it wrote to stdout and stderr.

    \b
    Examples:
      aios logs -f 12
      aios logs -n 20 kernel
    """
    if as_json and follow:
        raise click.UsageError("--json prints one document: not with --follow")
    if who in LOG_FILES:
        print_log(who, file_log(home / LOG_FILES[who], follow=follow), lines, as_json)
    elif who.isdigit():
        with connect(home, "aios-logs") as aios:
            print_log(who, agent_log(aios, int(who), follow=follow), lines, as_json)
    else:
        raise click.UsageError(f"{who!r} is neither a PID nor one of {', '.join(LOG_FILES)}")


def print_log(who: str, parts: Iterator[bytes], lines: int | None, as_json: bool) -> None:
    written = next(parts)
    if lines is not None:
        written = b"".join(deque(written.splitlines(keepends=True), maxlen=lines))
    if as_json:
        show({"of": who, "text": written.decode(errors="replace")}, True, "")
        return
    for part in itertools.chain([written], parts):
        click.echo(part, nl=False)


def agent_log(
    aios: Aios, pid: int, *, follow: bool, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[bytes]:
    """First all that is there, then, with `follow`, what comes, until the agent's end. `meanwhile`
    is called whenever something has come on the connection."""
    written, part = b"", aios.log(pid)
    while part.data and not part.ended:
        written += part.data
        part = aios.log(pid, part.offset)
    yield written + part.data
    while follow and not part.ended:
        call = aios.start("proc.log", pid=pid, offset=part.offset, wait=LOG_WAIT)
        while not call.ended:
            meanwhile()  # this may take what has come as well
            if not call.ended:
                aios.connection.pump()
        part = msgspec.convert(call.wait(), LogPart)
        yield part.data


def file_log(path: Path, *, follow: bool) -> Iterator[bytes]:
    """As `agent_log`, of a file that may be emptied at any time, and has no end."""
    if not path.exists():
        raise NotFound(f"there is no log {path}", "has a system run in this home?")
    with path.open("rb") as log:
        yield log.read()
        while follow:
            time.sleep(LOOK)
            if log.tell() > path.stat().st_size:
                log.seek(0)
            yield log.read()


@click.command()
@json_option
def agents(as_json: bool) -> None:
    """List the agents that come with AIOS.

    Their names are programs for `run` and `spawn`.

    \b
    Example:
      aios agents
    """
    names = registered()
    show(names, as_json, render.columns(["name", "what it does"], list(names.items())))


COMMANDS = (run, spawn, ps, kill, nice, wait, logs, agents)
