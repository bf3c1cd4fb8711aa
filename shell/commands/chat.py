"""The commands that talk to an agent by messages: one, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from aios.agents import Aios, connect

from .. import render
from ..completion import live_processes
from ..options import WAIT, WHO, json_value
from ..output import json_option, say, show
from ..who import finish_off, pid_of

GREETING = "a line goes to {name}, process {pid}; Ctrl-D ends the talk"


@click.command()
@click.argument("who", metavar="PID|NAME", type=WHO, shell_complete=live_processes)
@click.argument("text", required=False)
@click.option("--body-json", metavar="JSON", help="The message, when it is not a text.")
@click.option("--wait", type=WAIT, metavar="SECONDS", help="Wait so long for an answer; print it.")
@json_option
@click.pass_obj
def send(
    home: Path, who: int | str, text: str | None, body_json: str | None, wait: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Send an agent a message: TEXT, or what stdin has.

    \b
    Examples:
      aios send helper "What is the capital of France?" --wait 60
      aios send 12 --body-json '{"turns": 2}'
      aios send helper < notes.txt
    """
    if text is not None and body_json is not None:
        raise click.UsageError("give TEXT or --body-json, one of them")
    if body_json is None:
        body = sys.stdin.read() if text is None else text
    else:
        body = json_value(body_json, "--body-json")
    with connect(home, "aios-send") as aios:
        pid = pid_of(aios, who)
        aios.send(pid, body)
        if wait is not None:
            mail = aios.recv(pid, timeout=wait)
            show(mail, as_json, render.value(mail.body))
        elif as_json:
            show({"to": pid}, as_json, "")


@click.command()
@click.argument(
    "who", metavar="[PID|NAME]", type=WHO, required=False, shell_complete=live_processes
)
@click.pass_obj
def chat(home: Path, who: int | str | None) -> None:
    """Talk to an agent, line by line.

    Each line is a message to it; its answer is printed. Without PID or NAME the agent `chat` is
    started, and ended afterwards. The lines come from the terminal, until Ctrl-D, or from stdin. An
    agent that answers no messages stays silent: Ctrl-C leaves it.

    \b
    Examples:
      aios chat
      aios chat helper
      echo "Name three colors." | aios chat
    """
    with connect(home, "aios-chat") as aios, partner(aios, who) as pid:
        for line in lines(aios, pid):
            aios.send(pid, line)
            say(render.value(aios.recv(pid).body))


@contextmanager
def partner(aios: Aios, who: int | str | None) -> Iterator[int]:
    if who is not None:
        yield pid_of(aios, who)
        return
    pid = aios.spawn("chat")
    try:
        yield pid
    finally:
        finish_off(aios, pid)


def lines(aios: Aios, pid: int) -> Iterator[str]:
    """Yield the lines that a person types, except empty ones. Raises KeyboardInterrupt."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    from prompt_toolkit import PromptSession  # noqa: PLC0415 (a quarter of a second)

    name = next((row.name for row in aios.ps() if row.pid == pid), "")
    say(GREETING.format(name=name, pid=pid), err=True)
    session: PromptSession[str] = PromptSession()
    while True:
        try:
            line = session.prompt("> ").strip()
        except EOFError:
            return
        if line:
            yield line


COMMANDS = (chat, send)
