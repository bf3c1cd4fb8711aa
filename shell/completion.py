"""What an argument can be completed to, in the interactive shell as in bash, zsh and fish."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from aios.agents import connect
from aios.agents.runner import registered
from aios.syscalls.errors import AiosError
from aios.syscalls.home import default_home


def home_of(ctx: click.Context) -> Path:
    given = ctx.find_root().params.get("home")
    return Path(given).absolute() if given else default_home()


def live_pids(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """The PIDs of live agents, with their names; none when no kernel answers."""
    try:
        with connect(home_of(ctx), "aios-complete") as aios:
            rows = aios.ps()
    except AiosError:
        return []
    return [
        CompletionItem(str(row.pid), help=f"{row.name} ({row.state})")
        for row in rows
        if str(row.pid).startswith(incomplete)
    ]


def log_names(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    names = [n for n in ("kernel", "core", "init") if n.startswith(incomplete)]
    return [*live_pids(ctx, param, incomplete), *map(CompletionItem, names)]


def programs(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Registered agents, and files."""
    names = registered().items()
    items = [CompletionItem(name, help=doc) for name, doc in names if name.startswith(incomplete)]
    return [*items, CompletionItem(incomplete, type="file")]


def policies(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """The scheduling policies of the running kernel; none when no kernel answers."""
    try:
        with connect(home_of(ctx), "aios-complete") as aios:
            names = aios.status().policies
    except AiosError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def grant_numbers(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The numbers of the grants that stand; none when no kernel answers."""
    try:
        with connect(home_of(ctx), "aios-complete") as aios:
            rows = aios.grants()
    except AiosError:
        return []
    return [
        CompletionItem(str(row.id), help=f"{row.right} to {row.to}")
        for row in rows
        if str(row.id).startswith(incomplete)
    ]


def group_names(
    ctx: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The names of the groups; none when no kernel answers."""
    try:
        with connect(home_of(ctx), "aios-complete") as aios:
            names = aios.groups()
    except AiosError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
