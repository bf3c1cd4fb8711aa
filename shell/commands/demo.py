"""The command `aios demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aios.syscalls.llm import Generate

from ..completion import policies
from ..demo.jobs import pick
from ..demo.measure import measure
from ..demo.view import summary
from ..options import QUANTUM, SLOTS, Whole, field
from ..output import show


@click.command()
@click.option("--agents", type=Whole(1, 256), default=8, show_default=True)
@click.option("--slots", type=SLOTS, default=3, show_default=True)
@click.option(
    "--max-tokens", type=field(Generate, "max_tokens"), default=72, show_default=True,
    help="Of each agent.",
)  # fmt: skip
@click.option("--policy", default="rr", show_default=True, shell_complete=policies)
@click.option("--quantum", type=QUANTUM, default=16, show_default=True, help="Tokens of a turn.")
@click.option("--model", type=click.Path(path_type=Path), help="A GGUF file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def demo(agents: int, max_tokens: int, model: Path | None, as_json: bool, **settings: Any) -> int:
    """Watch more agents than slots share a model.

    Runs on systems of its own, in temporary homes. Every agent runs once beside the others and once
    alone, on a second system that has nothing of the first. Exit code 0 only if both outputs of
    every agent are identical, bit for bit.

    \b
    Examples:
      aios demo
      aios demo --agents 16 --slots 4 --quantum 8
      aios demo --json
    """
    if model is not None:
        settings["model"] = str(model.absolute())
    report = measure(pick(agents, max_tokens), {"ctx": 1024, **settings})
    show(report.summary(), as_json, summary(report))
    return int(report.identical < len(report.runners))


COMMANDS = (demo,)
