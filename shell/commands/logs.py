"""The command about logs: what agents printed, and what the parts of the system had to say."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import msgspec
from click.shell_completion import CompletionItem

from aios.agents import Aios, connect
from aios.syscalls.errors import NotFound
from aios.syscalls.proc import LogPart

from ..completion import item, live_processes
from ..options import WHO, Whole
from ..output import Copy, json_option, show
from ..who import pid_of

LOG_WAIT_S = 30.0  # that one call waits for more of a log
POLL_S = 0.2  # between two looks at a log file
LOG_FILES = {name: f"log/{name}.log" for name in ("kernel", "core", "index", "gateway")} | {
    "init": "init.log"
}


def log_names(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    parts = [item(name) for name in LOG_FILES if name.startswith(incomplete)]
    return [*live_processes(ctx, param, incomplete), *parts]


@click.command()
@click.argument(
    "who", metavar=f"PID|NAME|{'|'.join(LOG_FILES)}", type=WHO, shell_complete=log_names
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until it ends.")
@click.option("--lines", "-n", type=Whole(min=0), help="Begin with the last so many.")
@json_option
@click.pass_obj
def logs(home: Path, who: int | str, follow: bool, lines: int | None, as_json: bool) -> None:
    """Print the log of an agent, or of a part of the system.

    That of an agent is what it wrote to stdout and stderr. An agent with the name of a part of the
    system is found by its PID.

    \b
    Examples:
      aios logs writer
      aios logs -f 12
      aios logs -n 20 kernel
    """
    if as_json and follow:
        raise click.UsageError("--json prints one document: not with --follow")
    if who in LOG_FILES:
        print_log(str(who), file_log(home, str(who), follow=follow), lines, as_json)
        return
    with connect(home, "aios-logs") as aios:
        pid = pid_of(aios, who, ended=True)
        print_log(str(pid), agent_log(aios, pid, follow=follow), lines, as_json)


def print_log(of: str, parts: Iterator[bytes], lines: int | None, as_json: bool) -> None:
    written = next(parts)
    if lines is not None:
        written = b"".join(deque(written.splitlines(keepends=True), maxlen=lines))
    if as_json:
        show({"of": of, "text": written.decode(errors="replace")}, True, "")
        return
    copy = Copy()
    for part in itertools.chain([written], parts):
        copy.write(part)
    copy.end()


def agent_log(
    aios: Aios, pid: int, *, follow: bool, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[bytes]:
    """Yield first all that is there, then, with `follow`, what comes, until the agent's end.
    `meanwhile` is called whenever something has come on the connection."""
    end = aios.log(pid, -1).offset  # or who prints without end would be read without end
    parts = [part := aios.log(pid)]
    while part.data and part.offset < end:
        parts.append(part := aios.log(pid, part.offset))
    yield b"".join(each.data for each in parts)
    while follow and not part.ended:
        call = aios.start("proc.log", pid=pid, offset=part.offset, wait=LOG_WAIT_S)
        while not call.ended:
            meanwhile()  # this may take what has come as well
            if not call.ended:
                aios.connection.pump()
        part = msgspec.convert(call.wait(), LogPart)
        yield part.data


def file_log(home: Path, name: str, *, follow: bool) -> Iterator[bytes]:
    """Yield the log of a part of the system, as `agent_log` does: from a file that may be emptied
    at any time, and has no end."""
    path = home / LOG_FILES[name]
    if not path.exists():
        raise NotFound(f"there is no log {path}", f"it begins when {name} first runs in this home")
    with path.open("rb") as log:
        yield log.read()
        while follow:
            time.sleep(POLL_S)
            if log.tell() > path.stat().st_size:
                log.seek(0)
            yield log.read()


COMMANDS = (logs,)
