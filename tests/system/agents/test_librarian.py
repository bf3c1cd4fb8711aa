"""Questions to a database and a folder, answered with the tools that ship and the real model."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from aios.agents import Aios
from aios.shell.launch import System

BOOKS = [
    ("Emma", "Jane Austen", 1815, 3), ("Persuasion", "Jane Austen", 1817, 1),
    ("Dracula", "Bram Stoker", 1897, 2), ("Frankenstein", "Mary Shelley", 1818, 5),
]  # fmt: skip
TEXTS = {
    "cards": "A library card is free. A lost card is replaced for four dollars.",
    "garden": "The garden behind the house was planted by Rosa Lind in 1962.",
}
EXAMPLES = {
    "Who wrote Ulysses?": "SELECT author FROM books WHERE title = 'Ulysses'",
    "How many copies of Ulysses are there?": "SELECT copies FROM books WHERE title = 'Ulysses'",
    "Which books did James Joyce write?": "SELECT title FROM books WHERE author = 'James Joyce'",
    "When was Ulysses published?": "SELECT year FROM books WHERE title = 'Ulysses'",
}
ASKED = {
    "Who wrote Emma?": ["author: Jane Austen"],
    "How many copies of Frankenstein are there?": ["copies: 5"],
    "What does a lost card cost?": [TEXTS["cards"]],
    "Who planted the garden?": [TEXTS["garden"]],
}


@pytest.fixture
def system(talker: System) -> System:
    return talker


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a database and texts."""
    with closing(sqlite3.connect(tmp_path / "books.db")) as made:
        made.execute("CREATE TABLE books (title TEXT, author TEXT, year INTEGER, copies INTEGER)")
        made.executemany("INSERT INTO books VALUES (?, ?, ?, ?)", BOOKS)
        made.commit()
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def forget(aios: Aios) -> None:
    for object_ in list(aios.sto_list(owner="/librarian")):
        aios.sto_purge(object_.path, owner="/librarian")


def test_a_librarian_answers_from_a_database_and_a_folder(aios: Aios, data: Path) -> None:
    task: dict[str, Any] = {"database": str(data / "books.db"), "folder": str(data)}
    task |= {"examples": EXAMPLES, "ask": list(ASKED)}
    end = aios.wait(aios.spawn("librarian", task, reach={"read": [str(data)]}), timeout=240)
    assert end.code == 0, end.result
    schemas = {spec.name: spec.schema for spec in aios.tools()}
    for asked in end.result:  # whatever the model thinks
        assert asked["tool"] in ("sql.query", "search")
        jsonschema.validate(asked["args"], schemas[asked["tool"]])
        assert asked["args"].get("database", "library/database") == "library/database"
        assert asked["args"].get("path", "library/texts") == "library/texts"
        assert asked["found"]
    assert [asked["found"] for asked in end.result] == list(ASKED.values())
    forget(aios)
