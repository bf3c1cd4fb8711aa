"""The command `aios`: the group, its exit codes, and the one place where errors are printed."""

from __future__ import annotations

import errno
import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from aios.syscalls import VERSION
from aios.syscalls.errors import (
    AiosError,
    BadGrammar,
    BadInput,
    DiskFull,
    HomeBusy,
    KernelGone,
    KeyMissing,
    KeyWrong,
    ModelError,
    NoRoom,
)
from aios.syscalls.home import default_home

from .commands import (
    access,
    audit,
    bench,
    chat,
    contexts,
    demo,
    generate,
    keys,
    logs,
    mcp,
    memory,
    model,
    processes,
    retrieval,
    storage,
    storage_upkeep,
    system,
    tools,
)
from .escape import as_json_text, hung
from .output import drop_unwritten, open_streams, say

EXIT_CODES: dict[type[AiosError], int] = {
    KernelGone: 3,
    HomeBusy: 75,
    BadInput: 78,
    BadGrammar: 78,
    ModelError: 78,
    NoRoom: 78,
    KeyMissing: 78,
    KeyWrong: 78,
}
INTERRUPTED = 130

EPILOG = """\b
Examples:
  aios start --detach && aios run summarize notes.txt && aios stop
  aios                             the interactive shell
  echo 'ps --json' | aios          commands from stdin, one a line

\b
Exit codes:
  0    done                        75   another system runs in this home
  1    failed, or as `run` says    78   a setting, the model, or a value
  2    wrong usage                      given cannot be used
  3    no kernel answers           130  interrupted

\b
Completion: eval "$(_AIOS_COMPLETE=bash_source aios)"
  in zsh with zsh_source; in fish: _AIOS_COMPLETE=fish_source aios | source
"""
HOME = "Where the system lives; several live side by side, each in its own."
HOMELESS = ("agents", "bench", "demo")  # commands that are about no system, or start their own


class Folder(click.Path):
    """A folder; not the one that an unset variable in quotes would mean, where one is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("it is empty: name a folder", param, ctx)
        return super().convert(value, param, ctx)


def set_home(ctx: click.Context, _: click.Parameter, home: Path | None) -> None:
    """Set the object of `click.pass_obj` to the value of --home, wherever it is given."""
    if home is not None:
        ctx.obj = home.absolute()


def home_option(**how: Any) -> click.Option:
    return click.Option(
        ["--home"], type=Folder(path_type=Path, file_okay=False), callback=set_home,
        expose_value=False, metavar="FOLDER", help=HOME, **how,
    )  # fmt: skip


@click.group(
    invoke_without_command=True, epilog=EPILOG, context_settings={"max_content_width": 100}
)
@click.version_option(VERSION, prog_name="aios", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> int:
    """An operating system for LLM agents: start it, run agents on it, watch them share a model.

    Without a command: the interactive shell, or commands from stdin when that is no terminal.
    """
    if ctx.invoked_subcommand is not None:
        return 0
    from .repl import Shell  # noqa: PLC0415 (half of the time that a short command takes)

    shell = Shell(ctx.obj, cli, execute)
    return shell.interactive() if sys.stdin.isatty() else shell.batch(sys.stdin)


def take_home(command: click.Command) -> None:
    """Allow --home behind the command as well: `aios stop --home FOLDER`."""
    command.params.append(home_option())
    if isinstance(command, click.Group):
        for each in command.commands.values():
            take_home(each)


GROUPS = (
    system, processes, logs, chat, contexts, generate, memory, storage, tools, access, keys, audit,
    model, mcp, demo, bench,
)  # fmt: skip
for command in (*storage_upkeep.COMMANDS, *retrieval.COMMANDS):
    storage.sto.add_command(command)
for commands in GROUPS:
    for command in commands.COMMANDS:
        cli.add_command(command)
        if command.name not in HOMELESS:
            take_home(command)
cli.params.insert(
    0, home_option(default=default_home, show_default="AIOS_HOME, or this user's state directory")
)


def execute(args: Sequence[str]) -> int:
    """Run one command line in this process, and return its exit code. Errors are printed to
    stderr."""
    as_json = "--json" in (args[: args.index("--")] if "--" in args else args)
    try:
        code = cli.main(args, prog_name="aios", standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        if as_json:
            told = {"code": "usage", "message": error.format_message(), "hint": ""}
            say(as_json_text(told), err=True)
        else:
            text = io.StringIO()
            error.show(text)
            say(text.getvalue(), err=True, nl=False)
        return error.exit_code
    except OSError as error:
        return complain(file_error(error), as_json)
    except UnicodeDecodeError:  # what a file holds is read by options.text_of
        return complain(BadInput("stdin is no text in UTF-8"), as_json)
    except AiosError as error:
        return complain(error, as_json)
    return code if isinstance(code, int) else 0


def file_error(error: OSError) -> AiosError:
    """Turn an OSError into an error that names its file, if Linux tells one."""
    about = error.filename or ("this folder" if error.errno == errno.ENOENT else "the output")
    text = f"{about}: {error.strerror}"
    if error.errno == errno.ENOSPC:
        return DiskFull(text, "make room on its disk")
    return BadInput(text, "choose another name or folder" if error.filename else "")


def complain(error: AiosError, as_json: bool) -> int:
    """Print an error, and return its exit code."""
    if as_json:
        say(as_json_text(error.to_wire()), err=True)
    else:
        say(f"aios: {hung(error.message)}", err=True)
        if error.hint:
            say(f"hint: {hung(error.hint)}", err=True)
    return EXIT_CODES.get(type(error), 1)


def main() -> NoReturn:
    open_streams()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # all end it, cleaning up
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        code = execute(sys.argv[1:])
    except OSError:  # of stderr, or it would have been told: nobody can be told anything
        code = 1
    drop_unwritten()
    sys.exit(code)
