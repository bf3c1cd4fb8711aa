"""How commands print: data to stdout, as a table or as JSON; progress to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import msgspec
from rich.console import Console, RenderableType

WIDE = 10_000  # columns: a table that goes into a pipe is not cut

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
