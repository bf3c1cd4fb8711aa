"""`aios bench`: what is measured is in aios.bench, which the rest of the shell does without."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from aios.syscalls.errors import AiosError

from .. import render
from ..output import json_option, progress, show

NAMES = (
    "throughput", "agents", "switch", "exact", "syscall", "swap", "memory", "retrieval",
    "audit", "dojo", "seal", "tools", "attacks", "decide",
)  # fmt: skip


@click.command()
@click.argument("name", metavar="BENCHMARK", type=click.Choice(NAMES))
@click.option(
    "--model", type=click.Path(path_type=Path),
    help="A GGUF file that both sides load; default: the embedded model.",
)  # fmt: skip
@click.option(
    "--data", metavar="FOLDER", type=click.Path(path_type=Path),
    help="The collection that `retrieval` is measured on (Cranfield; bench/RESULTS.md).",
)  # fmt: skip
@click.option(
    "--embedder", type=click.Path(path_type=Path),
    help="A GGUF file that `retrieval` embeds texts with; default: wordllama.",
)  # fmt: skip
@json_option
def bench(name: str, model: Path | None, as_json: bool, **given: Path | None) -> int:
    """Measure AIOS against a peer.

    BENCHMARK is throughput, agents, switch, exact, syscall, swap, memory, retrieval, audit, dojo,
    seal, tools, attacks or decide.

    Both are measured in one run: ratio, target, and the figures of both. The exit code is 1 where
    the target is missed, or of `attacks` the bound of any figure.

    \b
    Examples:
      aios bench switch
      aios bench throughput --json
      aios bench exact --model model.gguf
      aios bench retrieval --data ~/cranfield --embedder model.gguf
    """
    options = {option: path for option, path in given.items() if path}
    if options and name != "retrieval":
        raise click.UsageError(f"bench {name} takes no --{min(options)}")
    try:
        module = importlib.import_module(f"aios.bench.{name}")
    except ModuleNotFoundError as error:
        raise AiosError(
            f"bench {name} needs the package {error.name}",
            "run `make bench`, or pip install 'aios-system[bench]'",
        ) from error
    importlib.import_module("aios.bench.common").MODEL.set(model)
    with progress(plain=not as_json) as tell:
        found = module.run(tell, **options)
    target = module.TARGET
    missed = found.pop("missed", []) + ["ratio"] * target.missed(found["ratio"])
    measured = {"bench": name, "target": target.bound, "at_least": target.at_least, **found}
    measured["missed"] = missed
    show(measured, as_json, render.bench(measured))
    return 1 if missed else 0


COMMANDS = (bench,)
