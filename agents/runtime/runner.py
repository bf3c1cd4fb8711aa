"""The main program of an agent's process: find the agent's program, run it, report its end.

init imports this module before it forks, so that an agent starts without importing anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from aios.agents.sdk.aios import Aios, connect
from aios.syscalls.errors import AiosError, KernelGone, NoProgram

from .agent import Agent

REGISTRY = "aios.examples"  # a bare name is a module in here
SDK = f"{Path(__file__).parents[1]}/"  # the folder of aios.agents


def registered() -> dict[str, str]:
    """Return the names that `resolve` knows without a path, with one line about each."""
    spec = importlib.util.find_spec(REGISTRY)
    found = {}
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("[a-z]*.py")):
            first = path.read_text().partition("\n")[0]
            found[path.stem] = first.strip('"').strip()
    return found


def resolve(program: str) -> str:
    """Find the path of a program: a registered name, a .py file, or an executable.

    Raises:
        NoProgram: there is no such thing, or it cannot be run.
    """
    if "/" not in program and not program.endswith(".py"):
        names = registered()
        if program not in names:
            known = f"known: {', '.join(names)}; a file is named as NAME.py or ./NAME"
            raise NoProgram(f"no agent is registered as {program!r}", known)
        spec = importlib.util.find_spec(f"{REGISTRY}.{program}")
        if spec is None or spec.origin is None:
            raise NoProgram(f"the agent {program!r} has no file")
        return spec.origin
    path = Path(program)
    if not path.is_absolute():
        raise NoProgram(f"{program} is a relative path", "give the absolute path")
    if not path.is_file():
        raise NoProgram(f"there is no file {program}", "`aios agents` lists those that ship")
    if path.suffix != ".py" and not os.access(path, os.X_OK):
        raise NoProgram(f"{program} is neither a .py file nor executable")
    return program


class Source(SourceFileLoader):
    """A loader that ignores bytecode, as `python FILE` does: the sandbox may forbid to look for it,
    and would report each try."""

    def path_stats(self, path: Any) -> NoReturn:
        raise OSError("this source has no bytecode")


def load(path: str, loader: SourceFileLoader | None = None) -> type[Agent]:
    """Return the one Agent subclass that the file at `path` defines.

    Raises:
        NoProgram: it defines none, or several, or one that cannot be run.
    """
    spec = importlib.util.spec_from_file_location("aios_agent", path, loader=loader)
    if spec is None or spec.loader is None:
        raise NoProgram(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Agent) and value.__module__ == spec.name
    ]
    if len(found) != 1:
        raise NoProgram(
            f"{path} defines {len(found)} agents, not one", "subclass aios.agents.Agent"
        )
    if not takes_task(found[0]):
        raise NoProgram(
            f"{path}: {found[0].__name__} has no `run` that takes a task",
            "write `def run(self, task):`",
        )
    if not takes(found[0], "aios"):
        raise NoProgram(
            f"{path}: {found[0].__name__} has an `__init__` that takes no connection",
            "leave it out, or write `def __init__(self, aios): super().__init__(aios)`",
        )
    return found[0]


def takes_task(agent: type[Agent]) -> bool:
    if inspect.isabstract(agent) or not callable(agent.run):
        return False
    return takes(agent.run, "self", "task")


def takes(called: Callable[..., Any], *arguments: str) -> bool:
    try:
        inspect.signature(called).bind(*arguments)
    except TypeError:
        return False
    return True


def main(beside: str = "") -> int:
    """Run the program that the kernel names in its welcome, and return its exit code. It can import
    modules from the folder `beside`."""
    if beside:
        sys.path.insert(0, beside)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    aios = connect()
    code, result = _run(aios, beside)
    try:
        aios.exit(code, result)
    except AiosError as error:  # too big, nothing that msgpack has, or `run` has closed `aios`
        print(f"the result cannot be reported: {error}", file=sys.stderr)
        code = code if result is None else 1
        with contextlib.suppress(KernelGone):
            aios.exit(code, {"error": str(error)})
    return code


def _outcome(result: Any) -> Any:
    """Return the result of `run`, awaiting it if need be. Raises TypeError if `run` yields."""
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError("`run` yields, and so has not begun: let it return its result")
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def own_part(error: BaseException, path: str) -> TracebackType | None:
    """Cut the frames of the runner off the traceback of `error`: all of it is kept if the program
    has none, and nothing if it could not begin."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != path:
        trace = trace.tb_next
    began = not isinstance(error, SyntaxError | NoProgram)
    return trace or (error.__traceback__ if began else None)


def print_error(error: BaseException) -> None:
    """Print `error` with its traceback. That of a system call ends where the SDK was called."""
    told = traceback.TracebackException.from_exception(error)
    if isinstance(error, AiosError):
        while told.stack and told.stack[-1].filename.startswith(SDK):
            told.stack.pop()
    print(*told.format(), sep="", end="", file=sys.stderr)


def _run(aios: Aios, beside: str) -> tuple[int, Any]:
    program = path = aios.welcome.program
    try:
        path = resolve(program)
        agent = load(path, Source("aios_agent", path) if path == program else None)(aios)
        return 0, _outcome(agent.run(aios.welcome.task))
    except SystemExit as leave:
        if isinstance(leave.code, int | None):
            return (leave.code or 0) & 0xFF, None  # as Linux cuts it
        print(leave.code, file=sys.stderr)
        return 1, {"error": str(leave.code)}
    except BaseException as error:  # noqa: BLE001 (whatever it is, its parent gets to know)
        print_error(error.with_traceback(own_part(error, path)))
        if isinstance(error, ModuleNotFoundError) and not beside and "/" in program:
            print(
                "A program reads no modules beside it where your home is in that folder: put all "
                "of them into a folder of their own", file=sys.stderr,
            )  # fmt: skip
        return 1, {"error": f"{type(error).__name__}: {error}"}
