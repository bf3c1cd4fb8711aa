"""Python code that a model wrote. The walls around the worker are what holds it: the toolbox is
`fresh`, so what one call leaves behind no other finds."""

from __future__ import annotations

import ast
import contextlib
import traceback
from typing import Annotated

import msgspec
from msgspec import Meta

from aios.agents.runtime.printed import Printed
from aios.agents.runtime.tool import tool
from aios.syscalls.errors import ToolFailed

MAX_SHOWN_CHARS = 20_000  # of the output, and of the value


class Execution(msgspec.Struct):
    output: str
    value: str | None  # of the last line, where that is an expression


class KeptOutput(Printed):
    """Keeps the beginning of the output, and counts the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = ""
        self.lost = 0

    def write(self, text: str) -> int:
        room = MAX_SHOWN_CHARS - len(self.kept)
        self.kept += text[:room]
        self.lost += max(0, len(text) - room)
        return len(text)

    def text(self) -> str:
        return self.kept + f"\n... and {self.lost} characters more" * bool(self.lost)


@tool(timeout=30)
def python(code: Annotated[str, Meta(max_length=50_000)]) -> Execution:
    """Run Python code: what it prints, and the value of its last line. numpy is there. Nothing is
    kept from one call to the next."""
    try:
        body = ast.parse(code, "<code>").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ToolFailed(f"this is not Python: {error}") from error
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = KeptOutput(), None
    names = {"__name__": "__main__"}
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            exec(compile(ast.Module(body, []), "<code>", "exec"), names)
            if isinstance(last, ast.Expr):
                result = eval(compile(ast.Expression(last.value), "<code>", "eval"), names)
                value = None if result is None else repr(result)[:MAX_SHOWN_CHARS]
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            raise ToolFailed(_what_happened(error, printed.text())) from error
    return Execution(printed.text(), value)


def _what_happened(error: BaseException, printed: str) -> str:
    steps = [
        step for step in traceback.extract_tb(error.__traceback__) if step.filename == "<code>"
    ]
    where = f", line {steps[-1].lineno}" if steps else ""
    reason = "".join(traceback.format_exception_only(error)).strip()[:2000]
    return f"{reason}{where}" + f"\nIt had printed:\n{printed}" * bool(printed)
