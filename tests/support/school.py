"""A toolbox for tests of what models do with tools; each result can be known in advance."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from aios.agents.tools import tool

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
def note(path: str, text: str) -> str:
    """Write a line to a file."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")
    return text


@tool(name="school.stall", effect=True)
def stall(path: str, text: str) -> str:
    """Write a line to a file, say so by another, and never return."""
    note(path, text)
    Path(path + ".here").touch()
    while True:
        time.sleep(60)


@tool(name="school.wait_for")
def wait_for(path: str, say: str = "") -> str:
    """Make a file, if it is to say that it is here, and wait for another."""
    if say:
        Path(say).touch()
    while not Path(path).exists():
        time.sleep(0.02)
    return path
