"""The commands about agents: start them, list them, signal them, wait for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from aios.agents import connect
from aios.agents.runtime.runner import registered
from aios.syscalls.proc import Exited, SandboxGrants, Spawn

from .. import render
from ..completion import files, live_processes, programs
from ..options import NAME, WAIT, WHO, Whole, confining, field, json_value
from ..output import Copy, at_terminal, done, json_option, say, show
from ..questions import asking_in_place
from ..refused import Refused
from ..who import finish_off, pid_of
from .logs import agent_log

NICE = field(Spawn, "nice")
PROGRAM = field(Spawn, "program")


def spawn_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `run` and `spawn` share."""
    for decorate in (
        confining,
        click.option("--port", "ports", multiple=True, type=Whole(1, 65535),
                     help="A TCP port it may connect to."),
        click.option("--processes", is_flag=True, help="It may start processes of its own."),
        click.option("--nice", type=NICE, help="A smaller one gets longer turns of the model."),
        click.option("--name", type=NAME, help="What to list it as."),
        click.option("--task-json", metavar="JSON", help="The task, when it is not a string."),
        click.argument("task", nargs=-1, shell_complete=files),
        click.argument("program", type=PROGRAM, shell_complete=programs),
    ):  # fmt: skip
        command = decorate(command)
    return command


def as_request(
    program: str, task: tuple[str, ...], task_json: str | None, limits: dict[str, Any],
    read: tuple[str, ...], write: tuple[str, ...], ports: tuple[int, ...], processes: bool,
    **rest: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the arguments of Aios.spawn. An agent takes one task, an executable any arguments. It
    may read the files that these name."""
    is_path = "/" in program or program.endswith(".py")
    named = [str(Path(word).absolute()) for word in task if is_file(word)]
    request = rest | {
        "reach": SandboxGrants(
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
    if task_json is not None:
        return request | {"task": json_value(task_json, "--task-json")}
    return request | {"task": task[0] if task else None}


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

    Its log is printed as it comes, then its result, then what Linux refused to it, and the option
    that lets it. The code is 1 if a full disk lost what it printed. It starts in the folder that
    you are in, and sees of that what it was given.

    PROGRAM is a registered name (see `aios agents`), a .py file that defines an Agent, or an
    executable. TASK is what the agent makes of it: of summarize and extract the name of a file, of
    chat a line. Files that it names are the agent's to read. Ctrl-C ends the agent. With --json
    the log goes to stderr. Questions by rules are asked in the terminal.

    \b
    Examples:
      aios run summarize notes.txt --limit tokens=20000
      aios run chat "What is the capital of France?"
      aios run ./my_agent.py --task-json '{"depth": 2}' --json
      aios run /bin/echo -- -e "an option of the program"
    """
    with connect(home, "aios-run") as aios:
        refused = Refused(aios.start("kernel.events", kinds=["process"]))
        pid = refused.pid = aios.spawn(**as_request(**given))
        try:
            ask = asking_in_place(aios, pid)

            def meanwhile() -> None:
                ask()
                refused.look()

            copy = Copy(err=as_json)
            for part in agent_log(aios, pid, follow=True, meanwhile=meanwhile):
                copy.write(part)
            copy.end()
            end = aios.wait(pid)
        except BaseException:  # Ctrl-C, or nobody reads the pipe any more: `aios run x | head`
            finish_off(aios, pid)
            raise
        refused.look()
    report(end, as_json)
    for line in refused.said(home):
        say(line, err=True)
    return end.code or int(end.output_lost > 0)


def report(end: Exited, as_json: bool) -> None:
    """Print the result of an agent, unless it is an error, which is in its log."""
    told = isinstance(end.result, dict) and end.result.keys() == {"error"}
    if as_json or not (end.result is None or (end.code and told)):
        show(end, as_json, render.value(end.result))
    if (end.code or end.output_lost) and not as_json:
        say(f"aios: {render.ending(end)}", err=True)


@click.command()
@spawn_options
@json_option
@click.pass_obj
def spawn(home: Path, /, as_json: bool, **given: Any) -> None:
    """Start an agent and print its PID.

    It runs on by itself. The arguments are those of `aios run`.

    \b
    Examples:
      aios spawn chat --name helper
      aios spawn summarize notes.txt --json
    """
    with connect(home, "aios-spawn") as aios:
        pid = aios.spawn(**as_request(**given))
    show({"pid": pid}, as_json, str(pid))
    if not as_json and at_terminal(err=True):
        say(
            f"hint: `aios logs -f {pid}` shows what it prints, `aios chat {pid}` talks to it",
            err=True,
        )


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Clients and the dead as well.")
@click.option("--workers", is_flag=True, help="The processes that run tools as well.")
@click.option("--long", "-l", "long", is_flag=True, help="All that is known of each.")
@click.option("--tree", is_flag=True, help="Each below the agent that started it.")
@json_option
@click.pass_obj
def ps(
    home: Path, everything: bool, workers: bool, long: bool, tree: bool, as_json: bool
) -> None:  # fmt: skip
    """List the agents that are alive.

    \b
    Examples:
      aios ps
      aios ps -l
      aios ps --tree
      aios ps --all --json
    """
    with connect(home, "aios-ps") as aios:
        rows = [row for row in aios.ps(all=everything) if workers or not row.tool]
    if tree:
        rows = render.in_tree(rows)
    shape: render.Shape = "long" if long else "all" if everything else "short"
    show(rows, as_json, render.processes(rows, shape, tree=tree))


whom_argument = click.argument(
    "whom", nargs=-1, required=True, type=WHO, metavar="PID|NAME...", shell_complete=live_processes
)


@click.command()
@click.option(
    "--signal", "-s", type=click.Choice(["TERM", "KILL", "STOP", "CONT"], case_sensitive=False),
    default="TERM", show_default=True,
)  # fmt: skip
@whom_argument
@json_option
@click.pass_obj
def kill(home: Path, signal: Any, whom: tuple[int | str, ...], as_json: bool) -> None:
    """Send a signal to agents. STOP halts an agent and its generation; CONT lets them go on.

    \b
    Examples:
      aios kill writer
      aios kill -s STOP 12 13
    """
    with connect(home, "aios-kill") as aios:
        pids = [pid_of(aios, who) for who in whom]
        calls = [aios.start("proc.kill", pid=pid, signal=signal) for pid in pids]
        while not all(call.ended for call in calls):  # one that fails keeps no other from its end
            aios.connection.pump()
        for call in calls:
            call.wait()
    done({"pids": pids, "signal": signal}, as_json)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("value", type=NICE)
@click.argument("who", metavar="PID|NAME", type=WHO, shell_complete=live_processes)
@json_option
@click.pass_obj
def nice(home: Path, value: int, who: int | str, as_json: bool) -> None:
    """Set how much of the model an agent gets.

    VALUE is -20 (the longest turns) to 19 (the shortest).

    \b
    Examples:
      aios nice -5 12
      aios nice 10 writer
    """
    with connect(home, "aios-nice") as aios:
        pid = pid_of(aios, who)
        now = aios.nice(value, pid)
    show({"pid": pid, "nice": now}, as_json, f"process {pid} has the nice value {now}")


@click.command()
@whom_argument
@click.option("--timeout", type=WAIT, metavar="SECONDS", help="How long to wait at most.")
@json_option
@click.pass_obj
def wait(
    home: Path, whom: tuple[int | str, ...], timeout: float | None, as_json: bool
) -> int:  # fmt: skip
    """Wait for agents to end.

    The exit code is that of the last one named.

    \b
    Examples:
      aios wait writer
      aios wait 12 13 --timeout 60 --json
    """
    with connect(home, "aios-wait") as aios:
        pids = [pid_of(aios, who, ended=True) for who in whom]
        calls = [aios.start("proc.wait", pid=pid, timeout=timeout) for pid in pids]
        ends = [msgspec.convert(call.wait(), Exited) for call in calls]
    show(ends, as_json, "\n".join(render.ending(end) for end in ends))
    return ends[-1].code


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


COMMANDS = (run, spawn, ps, kill, nice, wait, agents)
