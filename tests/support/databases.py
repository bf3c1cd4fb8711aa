"""Small databases for tests of SQL."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import duckdb


def sqlite_file(path: Path, journal: str = "delete") -> Path:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
        db.executescript(
            "CREATE TABLE ships (name TEXT, length REAL, photo BLOB);"
            "INSERT INTO ships VALUES ('Elba', 31.5, x'0011'), ('Tejo', NULL, NULL);"
            "CREATE VIEW long AS SELECT name FROM ships WHERE length > 30;"
            "CREATE VIRTUAL TABLE notes USING fts5(text);"
            "INSERT INTO notes VALUES ('the ferry leaves at nine');"
        )
    return path


def duckdb_file(path: Path) -> Path:
    with duckdb.connect(path) as db:
        db.execute("CREATE TABLE ships (name VARCHAR, length DOUBLE, built DATE)")
        db.execute("INSERT INTO ships VALUES ('Elba', 31.5, '1990-01-31'), ('Tejo', 'nan', NULL)")
    return path
