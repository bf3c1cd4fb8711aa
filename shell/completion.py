"""Completion of arguments, in the interactive shell and in bash, zsh and fish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from aios.agents import Aios, connect
from aios.agents.runtime.runner import registered
from aios.syscalls.errors import AiosError
from aios.syscalls.home import default_home

from .escape import brief, shown

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


def home_of(ctx: click.Context) -> Path:
    return ctx.obj if isinstance(ctx.obj, Path) else default_home()


def item(text: str, about: str = "") -> CompletionItem[str]:
    return CompletionItem(shown(text), help=brief(about) or None)


def asking(ask: Callable[[Aios, str], Iterable[tuple[str, str]]]) -> Complete:
    """Complete to what the running kernel knows, each with a word about it; to nothing if no kernel
    answers."""

    def complete(
        ctx: click.Context, _: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        try:
            with connect(home_of(ctx), "aios-complete") as aios:
                found = [*ask(aios, incomplete)]
        except AiosError:
            return []
        return [item(text, about) for text, about in found if text.startswith(incomplete)]

    return complete


def processes(aios: Aios, incomplete: str) -> Iterator[tuple[str, str]]:
    """Complete agents by PID or, once there is a letter, by names that only one of them has."""
    rows = [row for row in aios.ps() if not row.tool]
    names = Counter(row.name for row in rows)
    for row in rows:
        yield str(row.pid), f"{row.name} ({row.state})"
        if incomplete and names[row.name] == 1:
            yield row.name, f"process {row.pid} ({row.state})"


live_processes = asking(processes)
policies = asking(lambda aios, _: ((name, "") for name in aios.status().policies))
grant_numbers = asking(lambda aios, _: ((str(r.id), f"{r.right} to {r.to}") for r in aios.grants()))
group_names = asking(lambda aios, _: ((name, "") for name in aios.groups()))
tool_names = asking(lambda aios, _: ((spec.name, spec.description) for spec in aios.tools()))


def files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    return [CompletionItem(incomplete, type="file")]


def programs(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Complete registered agents, .py files, and folders on the way to some."""
    names = registered().items()
    found = [item(name, about) for name, about in names if name.startswith(incomplete)]
    folder, slash, begin = incomplete.rpartition("/")
    paths = below(folder + slash, begin)
    if not found and len(paths) == 1 and paths[0].endswith("/"):
        paths += below(paths[0], "")  # or a shell takes that folder for the whole word
    return [*found, *map(item, paths)]


def below(folder: str, begin: str) -> list[str]:
    """List possible programs in a folder, as "FOLDER/NAME.py" and "FOLDER/NAME/"."""
    where = Path(folder or ".").expanduser()
    try:
        entries = sorted(where.iterdir())
        return [
            f"{folder}{path.name}{'/' * path.is_dir()}"
            for path in entries
            if path.name.startswith(begin) and (begin or not path.name.startswith("."))
            and (path.suffix == ".py" or path.is_dir())
        ]  # fmt: skip
    except OSError:
        return []
