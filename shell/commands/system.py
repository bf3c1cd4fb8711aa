"""The commands about a system as a whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click
import psutil

from aios.agents import connect
from aios.syscalls.errors import KeyMissing, TimedOut
from aios.syscalls.kernel import EventKind, SetPolicy, Status

from .. import render
from ..completion import policies
from ..escape import as_json_text
from ..launch import System, exit_code, init_of
from ..options import QUANTUM, SLOTS, Whole, field
from ..output import at_terminal, done, json_option, progress, say, show
from . import keys

STOP_TIMEOUT_S = 30.0  # for agents, core, kernel and init to end
KINDS = get_args(EventKind)
POLICY = field(SetPolicy, "policy", "a name: letters, digits and . _ + -")
# Settings of the kernel: kernel/config.py
WINDOW = Whole(0, 2**20)
THREADS = Whole(0, 512)


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), help="A GGUF file; default: SmolLM2-135M."
)
@click.option(
    "--fitted/--no-fitted", default=None,
    help="Load the format that `aios model fit` chose. [default: no-fitted]",
)  # fmt: skip
@click.option("--slots", type=SLOTS, help="Contexts that the model works on at once.")
@click.option("--ctx", type=WINDOW, help="Tokens that a context can hold; 0: up to 2,048.")
@click.option("--threads", type=THREADS, help="Threads of the LLM core; 0: one a processor.")
@click.option(
    "--policy",
    shell_complete=policies,
    help="Scheduling policy, as rr or fifo; `aios status` has all.",
)
@click.option("--quantum", type=QUANTUM, help="Tokens of a turn.")
@click.option(
    "--exact/--no-exact", default=None,
    help="Keep decode batches within what the self-test certifies as exact. [default: exact]",
)  # fmt: skip
@click.option(
    "--embedder", type=click.Path(path_type=Path),
    help="A GGUF file that `aios sto search` embeds texts with; default: wordllama.",
)  # fmt: skip
@click.option("--detach", "-d", is_flag=True, help="Return when the system is ready.")
@json_option
@click.pass_obj
def start(home: Path, /, detach: bool, as_json: bool, **given: Any) -> int:
    """Start a system.

    Stays with it until Ctrl-C or, with --detach, returns when it is ready. Options that are not
    given come from config.toml in the home, or have their defaults.

    \b
    Examples:
      aios start --detach
      aios --home /tmp/second start --model model.gguf --slots 8 --policy fifo
    """
    settings = {name: value for name, value in given.items() if value is not None}
    for name in {"model", "embedder"} & settings.keys():
        settings[name] = str(settings[name].absolute())
    try:
        launched = System(home, settings, detach=detach)
        with progress() as tell:
            status = launched.ready(tell)
    except KeyMissing:
        if not sys.stdin.isatty():
            raise
        launched = System(home, settings, detach=detach, passphrase=keys.passphrase(home))
        with progress() as tell:
            status = launched.ready(tell)
    try:
        show(status, as_json, render.ready_line(status))
        if status.gateway_error is not None:
            say(
                f"aios: nobody can call from elsewhere: {status.gateway_error['message']}", err=True
            )
        if not as_json:
            about_format(status)
        return 0 if detach else exit_code(launched.process)
    except KeyboardInterrupt:
        launched.process.terminate()
    return wind_up(launched)


def about_format(status: Status) -> None:
    """Say on stderr why a fitted model is not loaded; in a terminal, that there can be one."""
    model = status.model
    assert model is not None, "a system that is ready has a model"
    if model.refused:
        say(f"aios: the original is loaded, no fitted model: {model.refused}", err=True)
    elif at_terminal(err=True) and not model.measured:
        say("hint: `aios model fit` finds a quicker format for this machine", err=True)


def wind_up(launched: System) -> int:
    """Wait for the system's end. Another Ctrl-C ends it at once, and raises Abort."""
    try:
        say("stopping", err=True)
        return exit_code(launched.process)
    except KeyboardInterrupt:
        launched.end_now()
        raise click.Abort from None


@click.command()
@json_option
@click.pass_obj
def stop(home: Path, as_json: bool) -> None:
    """End every agent, then the system.

    Returns when all of it is gone.

    \b
    Example:
      aios stop
    """
    with connect(home, "aios-stop") as aios:
        init = init_of(aios.status())
        aios.stop()
    try:
        init.wait(STOP_TIMEOUT_S)
    except psutil.TimeoutExpired as error:
        raise TimedOut(
            f"init, process {init.pid}, is still there after {STOP_TIMEOUT_S:g} s",
            f"see {home / 'init.log'}, or end it with `kill -KILL {init.pid}`",
        ) from error
    done({"stopped": str(home)}, as_json)


@click.command()
@json_option
@click.pass_obj
def status(home: Path, as_json: bool) -> None:
    """Show what runs: model, slots, policy, load.

    \b
    Examples:
      aios status
      aios status --json
    """
    with connect(home, "aios-status") as aios:
        answer: Status = aios.status()
    show(answer, as_json, render.status(answer))


@click.command()
@json_option
@click.pass_obj
def stats(home: Path, as_json: bool) -> None:
    """Show counters and timings since the kernel started.

    \b
    Example:
      aios stats
    """
    with connect(home, "aios-stats") as aios:
        answer = aios.stats()
    show(answer, as_json, render.stats(answer))


@click.command()
@click.argument("name", required=False, type=POLICY, shell_complete=policies)
@click.option("--quantum", type=QUANTUM, help="Tokens of a turn.")
@json_option
@click.pass_obj
def sched(home: Path, name: str | None, quantum: int | None, as_json: bool) -> None:
    """Show the scheduling policy, or set it.

    \b
    Examples:
      aios sched
      aios sched rr --quantum 16
    """
    with connect(home, "aios-sched") as aios:
        answer = aios.policy(name, quantum)
    show(answer, as_json, f"{answer.policy}, quantum {answer.quantum} tokens")


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice(KINDS))
@click.option("--count", "-n", type=Whole(min=1), help="End after so many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def events(home: Path, kinds: tuple[Any, ...], count: int | None, as_json: bool) -> None:
    """Follow what happens, as it happens, until Ctrl-C.

    \b
    Examples:
      aios events
      aios events process -n 1 --json
    """
    with connect(home, "aios-events") as aios:
        for number, event in enumerate(aios.events(*kinds), start=1):
            say(as_json_text(event, indent=-1) if as_json else render.event(event))
            if number == count:
                return


@click.command()
@json_option
@click.pass_obj
def check(home: Path, as_json: bool) -> int:
    """Have the kernel test its invariants.

    Exit code 1 if one is broken.

    \b
    Example:
      aios check
    """
    with connect(home, "aios-check") as aios:
        problems = aios.check()
    text = "\n".join(problems) or "every invariant of the kernel holds"
    show({"problems": problems}, as_json, text)
    return int(bool(problems))


COMMANDS = (start, stop, status, stats, sched, events, check)
