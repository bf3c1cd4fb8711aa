"""All that the shell prints goes through this module; nothing else in the shell writes to a stream.

Whatever is printed is escaped here by `shown` (escape.py), so that no command can forget it.

Data goes to stdout, as a table or as JSON; errors, questions and progress go to stderr.
"""

from __future__ import annotations

import codecs
import io
import os
import shutil
import sys
import termios
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress import Progress, ProgressColumn, TextColumn
from rich.segment import Segment
from rich.text import Text

from .escape import as_json_text, shown

WIDE = 10_000  # columns: a table that goes into a pipe is not folded
STREAM = Path("-")  # stdin or stdout, where a file is named

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")


# --- printing ------------------------------------------------------------------------------------


class Screen(Console):
    """A console that escapes every text, of whatever a renderable is made, and reads no markup."""

    def __init__(self, *, err: bool = False, **options: Any) -> None:
        if "width" in options:
            options.setdefault("height", 25)  # or rich takes 80 columns where TERM is dumb
        super().__init__(stderr=err, highlight=False, markup=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:  # rich's own: it moves the cursor of what is drawn anew
                yield segment
            else:
                yield segment._replace(text=shown(segment.text, lines=True))


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text: lines of the shell's own, or what an agent wrote and printed."""
    click.echo(shown(text, lines=True), err=err, nl=nl)


def show(data: Any, as_json: bool, rendered: RenderableType) -> None:
    """Print `data` as JSON, or else as what was rendered of it. Nothing of that is cut: of a table
    with no room for its columns each cell has a line."""
    if as_json:
        say(as_json_text(data))
    elif isinstance(rendered, str):
        say(rendered)
    elif at_terminal():
        Screen(width=shutil.get_terminal_size().columns).print(rendered)
    else:
        screen = Screen(width=WIDE, force_terminal=False)
        with screen.capture() as text:
            screen.print(rendered)
        say("\n".join(line.rstrip() for line in text.get().splitlines()))


def done(data: Any, as_json: bool) -> None:
    """Print what was done as JSON, if that is asked for: else no news is good news."""
    if as_json:
        say(as_json_text(data))


def headline(text: str) -> None:
    """Print a line to stderr that no agent can print: in a terminal it is bold."""
    Screen(err=True).print(Text(shown(text), style="bold"), soft_wrap=True)


def at_terminal(*, err: bool = False) -> bool:
    return (sys.stderr if err else sys.stdout).isatty()


class Copy(io.RawIOBase):
    """Prints bytes as they come: as UTF-8, with what is none escaped."""

    def __init__(self, *, err: bool = False) -> None:
        super().__init__()
        self.err = err
        self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self.last = "\n"

    def write(self, data: Any, /) -> int:
        self._say(self.decoder.decode(data))
        return len(data)

    def end(self) -> None:
        """Print what was left of a cut character, and end the last line."""
        self._say(self.decoder.decode(b"", final=True))
        if self.last != "\n":
            say(err=self.err)

    def _say(self, text: str) -> None:
        say(text, err=self.err, nl=False)
        self.last = text[-1:] or self.last


def write(text: str) -> None:
    """Print a content: as it is into a file or pipe, escaped in a terminal."""
    if at_terminal():
        say(text, nl=False)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing: it gets all of the content, or stays as it was.

    Raises:
        OSError: it cannot be written.
    """
    if path == STREAM:
        with stdout() as out:
            yield out
        return
    device = path.exists() and not path.is_file()  # or a pipe
    target = path if device else path.resolve()
    part = path if device else target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            if target.is_file():
                shutil.copymode(target, part)
            yield file
        if not device:
            part.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if not device and part.exists():
            part.unlink()


@contextmanager
def stdout() -> Iterator[BinaryIO]:
    """Open stdout for a content, byte by byte; in a terminal escaped, with its last line ended."""
    if at_terminal():
        copy = Copy()
        yield cast(BinaryIO, copy)
        copy.end()
    else:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


# --- progress ------------------------------------------------------------------------------------


@contextmanager
def progress(*, plain: bool = False) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is waited for: a spinner in a terminal, else lines if `plain`."""
    if at_terminal(err=True):
        with Screen(err=True).status(Text()) as spinner:
            yield lambda text: spinner.update(Text(shown(text)))
        return
    last = ""

    def line(text: str) -> None:
        nonlocal last
        if plain and text != last:
            say(text, err=True)
        last = text

    yield line


def bars(
    label: str, *columns: ProgressColumn, transient: bool = False, screen: Screen | None = None
) -> Progress:
    """Show bars on stderr, each behind its `label`; nothing if that is no terminal."""
    screen = screen or Screen(err=True)
    return Progress(
        TextColumn(label, markup=False), *columns,
        console=screen, transient=transient, disable=not screen.is_terminal,
    )  # fmt: skip


def live() -> Live:
    """Return a part of the terminal, on stderr, that can be drawn anew."""
    return Live(console=Screen(err=True), auto_refresh=False)


# --- asking --------------------------------------------------------------------------------------


def choose(text: str, answers: Sequence[str]) -> str:
    """Ask for one of `answers` in the terminal. Earlier input is dropped: it answered something
    else. Raises click.Abort at Ctrl-C."""
    forget_typed()
    answer: str = click.prompt(shown(text), type=click.Choice(answers), err=True)
    return answer


def agreed(text: str, *, default: bool = False) -> bool:
    """Ask yes or no. Raises click.Abort at Ctrl-C, or at the end of stdin."""
    forget_typed()
    return click.confirm(shown(text), default=default, err=True)


def secret(text: str, *, twice: bool) -> str:
    """Ask for a passphrase."""
    answer: str = click.prompt(text, hide_input=True, confirmation_prompt=twice, err=True)
    return answer


def forget_typed() -> None:
    if sys.stdin.isatty():
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


# --- the streams of this process -----------------------------------------------------------------


def open_streams() -> None:
    """Make stdin, stdout and stderr what the rest may rely on: a stream that the caller closed
    (`aios ps >&-`) is /dev/null, stdin is UTF-8 whatever the locale, no character fails to be
    printed, and a traceback is printed as all else is."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    cast(io.TextIOWrapper, sys.stdin).reconfigure(encoding="utf-8", errors="strict")
    for stream in (sys.stdout, sys.stderr):
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    sys.excepthook = _say_defect
    threading.excepthook = lambda defect: _say_defect(*defect[:3])


def drop_unwritten() -> None:
    """Drop what stdout and stderr hold and cannot write, as on a full disk: Python would try once
    more at its end, complain, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # which was told when it was printed
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _say_defect(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    say("".join(traceback.format_exception(kind, error, trace)), err=True, nl=False)
