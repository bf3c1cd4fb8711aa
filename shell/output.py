"""How commands print: data to stdout, as a table or as JSON; progress to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec
from rich.console import Console, RenderableType

WIDE = 10_000  # columns: a table that goes into a pipe is not cut
STREAM = Path("-")  # stdin or stdout, where a file is named

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")


def as_json_text(data: Any, indent: int = 2) -> str:
    """Any reply of the ABI as JSON; bytes as base64. An indent below 0: in one line."""
    return msgspec.json.format(msgspec.json.encode(data), indent=indent).decode()


def show(data: Any, as_json: bool, rendered: RenderableType) -> None:
    """Print `data` as JSON, or else as what was rendered of it."""
    if as_json:
        click.echo(as_json_text(data))
    elif sys.stdout.isatty():
        Console(highlight=False, markup=False).print(rendered)
    else:
        console = Console(width=WIDE, highlight=False, markup=False)
        with console.capture() as text:
            console.print(rendered)
        click.echo("\n".join(line.rstrip() for line in text.get().splitlines()))


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """What to write the content of `path` to: it gets all of that, or stays as it was.

    Raises:
        OSError: it cannot be written.
    """
    if path == STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    device = path.exists() and not path.is_file()  # or a pipe
    target = path if device else path.resolve()
    part = path if device else target.with_name(target.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        if not device:
            part.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if not device:
            part.unlink(missing_ok=True)


@contextmanager
def progress(*, plain: bool = False) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is waited for: a spinner in a terminal, else lines if `plain`."""
    if sys.stderr.isatty():
        with Console(stderr=True, highlight=False).status("") as spinner:
            yield spinner.update
        return
    last = ""

    def line(text: str) -> None:
        nonlocal last
        if plain and text != last:
            click.echo(text, err=True)
        last = text

    yield line
