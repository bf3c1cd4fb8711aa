"""What an argument can be completed to, in the interactive shell as in bash, zsh and fish."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from aios.agents import Aios, connect
from aios.agents.runner import registered
from aios.syscalls.errors import AiosError
from aios.syscalls.home import default_home

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


def home_of(ctx: click.Context) -> Path:
    given = ctx.find_root().params.get("home")
    return Path(given).absolute() if given else default_home()


def asking(ask: Callable[[Aios], Iterable[tuple[str, str]]]) -> Complete:
    """Completes to what the running kernel knows, each with a word about it; to nothing when no
    kernel answers."""

    def complete(
        ctx: click.Context, _: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        try:
            with connect(home_of(ctx), "aios-complete") as aios:
                found = [*ask(aios)]
        except AiosError:
            return []
        return [
            CompletionItem(text, help=about or None)
            for text, about in found
            if text.startswith(incomplete)
        ]

    return complete


live_pids = asking(lambda aios: ((str(r.pid), f"{r.name} ({r.state})") for r in aios.ps()))
policies = asking(lambda aios: ((name, "") for name in aios.status().policies))
grant_numbers = asking(lambda aios: ((str(r.id), f"{r.right} to {r.to}") for r in aios.grants()))
group_names = asking(lambda aios: ((name, "") for name in aios.groups()))
tool_names = asking(
    lambda aios: ((spec.name, spec.description.partition("\n")[0]) for spec in aios.tools())
)


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
