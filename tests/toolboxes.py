"""Tools that tests call without the tool manager: plain functions, run where they are called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from aios.agents.tool import Tool, tool
from aios.syscalls.errors import AiosError, NotFound, ToolFailed
from aios.syscalls.tool import Spec, ToolResult


class Alone:
    """A Running without a kernel behind it."""

    @property
    def aios(self) -> Any:
        raise ToolFailed("this tool was given no kernel")

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        pass


class Call:
    """A call that has ended."""

    def __init__(self, end: ToolResult | AiosError) -> None:
        self.end = end
        self.ended = True

    def result(self) -> ToolResult:
        if isinstance(self.end, AiosError):
            raise self.end
        return self.end

    def cancel(self) -> None:
        raise AssertionError("it has ended")


class InProcess:
    """Tools as Aios has them; `calls` are all that were made."""

    def __init__(self, *tools: Tool) -> None:
        self.by_name = {tool.name: tool for tool in tools}
        self.calls: list[tuple[str, dict[str, Any], float | None]] = []

    def tools(self) -> list[Spec]:
        return [tool.spec() for tool in self.by_name.values()]

    def call_tool(self, name: str, args: dict[str, Any], timeout: float | None = None) -> Call:
        self.calls.append((name, args, timeout))
        if name not in self.by_name:
            return Call(NotFound(f"no tool {name!r}"))
        try:
            return Call(ToolResult(value=self.by_name[name].run(args, Alone())))
        except AiosError as error:
            return Call(error)
        except (ValueError, ArithmeticError) as error:
            return Call(ToolFailed(f"{type(error).__name__}: {error}"))


Whole = Annotated[int, Meta(ge=-1000, le=1000)]


@tool
def add(a: Whole, b: Whole) -> int:
    """Add two whole numbers."""
    return a + b


@tool
def divide(a: Whole, b: Whole) -> float:
    """Divide one number by another."""
    return a / b


@tool
def capital(country: Literal["France", "Italy", "Japan"]) -> str:
    """The capital of a country."""
    return {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}[country]


@tool
def story(words: Annotated[int, Meta(ge=1, le=5000)] = 2000) -> str:
    """A long story."""
    return " ".join(f"word{number}" for number in range(words))
