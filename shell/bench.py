"""`aios bench`: what is measured is in aios.bench, which the rest of the shell does without."""

from __future__ import annotations

import importlib

import click

from aios.syscalls.errors import AiosError

from . import render
from .output import json_option, progress, show

NAMES = ("throughput", "agents", "switch", "exact", "syscall", "swap", "memory")


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@json_option
def bench(name: str, as_json: bool) -> None:
    """Measure AIOS against a peer.

    Both are measured in one run: ratio, target, and the figures of both.

    \b
    Examples:
      aios bench switch
      aios bench throughput --json
    """
    try:
        module = importlib.import_module(f"aios.bench.{name}")
    except ModuleNotFoundError as error:
        raise AiosError(
            f"bench {name} needs the package {error.name}",
            "run `make bench`, or pip install 'aios[bench]'",
        ) from error
    with progress(plain=not as_json) as tell:
        measured = module.run(tell)
    show(measured, as_json, render.bench(measured))


COMMANDS = (bench,)
