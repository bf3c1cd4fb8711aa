"""A toolbox for tests of what models do with tools; each result can be known in advance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from aios.agents.tool import tool

Whole = Annotated[int, Meta(ge=-1000, le=1000)]


@tool(name="school.add")
def add(a: Whole, b: Whole) -> int:
    """Add two whole numbers."""
    return a + b


@tool(name="school.divide")
def divide(a: Whole, b: Whole) -> float:
    """Divide one number by another."""
    return a / b


@tool(name="school.capital")
def capital(country: Literal["France", "Italy", "Japan"]) -> str:
    """The capital of a country."""
    return {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo"}[country]


@tool(name="school.story")
def story(words: Annotated[int, Meta(ge=1, le=9000)] = 2000) -> str:
    """A long story."""
    return " ".join(f"word{number}" for number in range(words))


@tool(name="school.note", effect=True)
def note(path: str, text: str) -> int:
    """Write a line to a file; how many it has then."""
    with Path(path).open("a") as file:
        file.write(f"{text} {os.getpid()}\n")
    return len(Path(path).read_text().splitlines())
