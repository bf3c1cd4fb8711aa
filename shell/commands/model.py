"""`aios model`: the file that a system loads, and the format that suits this machine best.

A process of its own loads the models: aios.kernel.core.fit, which the shell knows only as a
program to run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.filesize import decimal
from rich.progress import BarColumn, TimeElapsedColumn
from rich.table import Table

from .. import helper, output
from ..output import at_terminal, json_option, progress, say, show
from ..render import columns, pairs

FORMATS = "bf16,q8_0,q4_0"  # for whose weights llama.cpp has the fastest kernels
Step = Callable[[dict[str, Any]], None]  # what is done, steps done, total

model_option = click.option(
    "--model", type=click.Path(path_type=Path), help="A GGUF file; default: as `aios start`."
)


@click.group()
def model() -> None:
    """The model's file, and the format that is quickest here.

    \b
    Examples:
      aios model show
      aios model fit
      aios start --fitted
    """


@model.command("show")
@model_option
@json_option
@click.pass_obj
def show_model(home: Path, model: Path | None, as_json: bool) -> None:
    """Show which file would be loaded, and in which formats.

    \b
    Example:
      aios model show
    """
    report = ask(home, model, "show")
    show(report, as_json, overview(report))


@model.command()
@model_option
@click.option("--formats", default=FORMATS, show_default=True, help="What to measure.")
@click.option("--choose", help="A format to choose, whatever the rule picks.")
@click.option("--yes", "-y", is_flag=True, help="Choose without asking.")
@json_option
@click.pass_obj
def fit(
    home: Path, model: Path | None, formats: str, choose: str | None, yes: bool, as_json: bool
) -> None:
    """Measure the model in other formats, and choose one.

    Each is made from the original, timed beside it, and compared with it: how far the
    probabilities of the next token are apart. The rule picks the fastest that is within 0.01 nats
    (docs/models.md). Nothing but `aios start --fitted` ever loads what is chosen.

    \b
    Examples:
      aios model fit
      aios model fit --yes --json
      aios model fit --formats q8_0,q5_0,q4_0 --choose q5_0
    """
    names = [*dict.fromkeys(name for name in [*formats.split(","), choose] if name)]
    with steps(plain=not as_json) as step:
        report = ask(home, model, "measure", names, step)
    name = choose or report["picked"]
    if not as_json:
        show(report, as_json, overview(report))
    if name and name != report["chosen"] and (yes or agreed(name, as_json)):
        report = ask(home, model, "choose", [name])
    if as_json:
        show(report, as_json, "")
    else:
        say(outcome(report, name, home))


@model.command()
@click.argument("formats", nargs=-1)
@model_option
@json_option
@click.pass_obj
def forget(home: Path, formats: tuple[str, ...], model: Path | None, as_json: bool) -> None:
    """Remove FORMATS of the model from the cache.

    Without FORMATS, all that is known of the model. The original stays as it is.

    \b
    Examples:
      aios model forget q4_0
      aios model forget
    """
    report = ask(home, model, "forget", formats)
    show(report, as_json, overview(report))


def agreed(name: str, as_json: bool) -> bool:
    if as_json or not (sys.stdin.isatty() and at_terminal()):
        return False
    return output.agreed(f"Choose {name} for `aios start --fitted`?", default=True)


# --- the process that measures -------------------------------------------------------------------


def ask(
    home: Path, model: Path | None, action: str, formats: Any = (), step: Step = lambda _: None
) -> dict[str, Any]:
    """Have a process measure or choose, and return its report. Whatever ends this ends that
    process, and an unfinished file has no name.

    Raises:
        AiosError: what it could not do, and why.
    """
    settings = {} if model is None else {"model": str(model.absolute())}
    request = {"action": action, "home": str(home), "settings": settings, "formats": [*formats]}
    return helper.report(helper.said("aios.kernel.core.fit", request, "measures"), step)


# --- what is shown -------------------------------------------------------------------------------


@contextmanager
def steps(*, plain: bool) -> Iterator[Step]:
    """Show steps on stderr: a bar for each activity in a terminal, else a line for each if
    `plain`."""
    if not at_terminal(err=True):
        with progress(plain=plain) as line:
            yield lambda step: line(step["what"])
        return
    with output.bars("{task.description:<24}", BarColumn(), TimeElapsedColumn()) as display:
        tasks: dict[str, Any] = {}

        def move(step: dict[str, Any]) -> None:
            what = step["what"]
            if what not in tasks:
                tasks[what] = display.add_task(what)
            display.update(tasks[what], completed=step["done"], total=step["total"])

        yield move


def overview(report: dict[str, Any]) -> Group:
    rows = [
        ("model", report["model"]),
        ("", f"{report['format']}, {decimal(report['size'])}"),
        ("loaded", loaded(report)),
    ]
    if report["original"] is None:
        return Group(pairs([*rows, ("formats", "none measured: `aios model fit` does it")]))
    rows += [
        ("cache", report["folder"]),
        ("picked", report["picked"] or "none is both quicker and as good"),
        ("chosen", report["chosen"] or "none"),
    ]
    return Group(pairs([*rows, *elsewhere(report)]), "", table(report))


def loaded(report: dict[str, Any]) -> str:
    if report["refused"]:
        return f"the original; fitted = true, but {report['refused']}"
    return "the original" if report["loaded"] == report["model"] else str(report["loaded"])


def elsewhere(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the formats whose figures are of another machine or other settings, and of which."""
    for version in report["versions"]:
        if version["measured"] != report["here"]:
            there = ", ".join(f"{name} {value}" for name, value in version["measured"].items())
            yield version["format"], f"figures of another setting: {there}"


def table(report: dict[str, Any]) -> Table:
    """Show speeds in tokens/s and over the original's, and the distance from it."""
    titles = ["format", "MB", "prefill", "decode", "turns", "exact", "kl", "max", "same", "ppl"]
    cells = [row(version) for version in [report["original"], *report["versions"]]]
    return columns(titles, cells, right=titles[1:])


def row(version: dict[str, Any]) -> list[object]:
    speed, gain, apart = version["speed"], version["gain"], version["apart"]
    return [
        version["format"],
        f"{version['size'] / 1e6:.0f}",
        f"{speed['prefill']:.0f} {gain['prefill']:.2f}x",
        f"{speed['decode']:.0f} {gain['decode']:.2f}x",
        f"{gain['turns']:.2f}x",
        version["certified"],
        f"{apart['kl']:.4f}",
        f"{apart['kl_max']:.2f}",
        f"{apart['same_top']:.1%}",
        f"{version['perplexity']:.2f}",
    ]


def outcome(report: dict[str, Any], name: str, home: Path) -> str:
    """Describe the outcome, and the next command to type."""
    if not name:
        return f"none is both quicker and as good: {report['chosen'] or 'the original'} stays"
    if report["chosen"] == name:
        settings = home / "config.toml"
        return f"{name} is chosen; `aios start --fitted` loads it, or fitted = true in {settings}"
    return (
        f"nothing has changed; to choose: aios model fit --choose {name} --yes\n"
        f"to remove the files: aios model forget"
    )


COMMANDS = (model,)
