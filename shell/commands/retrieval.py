"""The commands about retrieval: part of `aios sto`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
import msgspec

from aios.agents import connect
from aios.syscalls.sto import Mode, Search

from .. import render
from ..options import When, Whole, field
from ..output import json_option, show


@click.command()
@click.argument("query", type=field(Search, "query"))
@click.option("--count", type=Whole(1, 50), default=5, show_default=True, help="Passages, at most.")
@click.option("--mode", type=click.Choice(get_args(Mode)), default="fused", show_default=True)
@click.option("--owner", metavar="/NAME", help="Of one owner alone.")
@click.option("--path", default="", help="This path and all below it alone.")
@click.option("--tag", "tags", multiple=True, help="With this tag; several: with all of them.")
@click.option("--since", type=When(), help="Stored then or later: 2026-01-31T12:00, 10m, 2h.")
@click.option("--until", type=When(), help="Stored before that time.")
@click.option("--fresh", is_flag=True, help="Wait until all that is stored is indexed.")
@json_option
@click.pass_obj
def search(
    home: Path, query: str, count: int, mode: Mode, owner: str | None, path: str,
    tags: tuple[str, ...], since: float | None, until: float | None, fresh: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Find passages of what is stored, by words and by meaning.

    \b
    Examples:
      aios sto search "when does the boat leave"
      aios sto search harbour --mode words --owner /writer --json
      aios sto search harbour --path trips --tag boats --since 2026-01-31
    """
    with connect(home, "aios-sto") as aios:
        found = aios.sto_search(
            query, count=count, mode=mode, owner=owner, path=path, tags=tags, fresh=fresh,
            since=since, until=until,
        )  # fmt: skip
    show(found, as_json, render.hits(found))


@click.command()
@click.option("--rebuild", is_flag=True, help="Drop it, and make it anew from what is stored.")
@json_option
@click.pass_obj
def index(home: Path, rebuild: bool, as_json: bool) -> None:
    """Show how far the index is.

    \b
    Examples:
      aios sto index
      aios sto index --rebuild
    """
    with connect(home, "aios-sto") as aios:
        if rebuild:
            aios.sto_reindex()
        report = aios.sto_index()
    rows = [(name, str(value)) for name, value in msgspec.structs.asdict(report).items()]
    show(report, as_json, render.pairs(rows))


COMMANDS = (search, index)
