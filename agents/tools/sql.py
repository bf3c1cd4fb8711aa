"""Questions to SQLite and DuckDB databases. Nothing in them can be changed, nor any other file
reached."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import duckdb
import msgspec
from msgspec import Meta

from aios.agents.runtime.tool import Running, tool
from aios.syscalls.errors import ToolFailed

TIMEOUT_S = 20.0  # of a query
MAX_BYTES = 64 << 20  # of a database that is in storage; a worker writes no longer file
MAX_MEMORY_BYTES = 256 << 20  # of a query
MAX_COLUMNS = 10_000  # of all tables that are listed
MAX_CELL_CHARS, MAX_RESULT_CHARS = 2000, 200_000  # of one value, of all
STEPS_BETWEEN_CHECKS = 10_000  # of SQLite's machine between two looks at the clock
DUCKDB: dict[str, str | bool | int | float | list[str]] = {
    # no file but the database, no variable of Python, and no way to change that
    "enable_external_access": False, "lock_configuration": True,
    "autoinstall_known_extensions": False, "autoload_known_extensions": False,
    "allow_community_extensions": False, "threads": 1,
    "memory_limit": f"{MAX_MEMORY_BYTES >> 20}MiB",
}  # fmt: skip
READS = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE
}  # fmt: skip
# Virtual tables (full text, JSON) do these when they are opened. Neither writes.
OPENS = {(sqlite3.SQLITE_UPDATE, "sqlite_master"), (sqlite3.SQLITE_PRAGMA, "data_version")}
SQLITE_TABLES = """
    SELECT name FROM pragma_table_list
    WHERE schema = 'main' AND type != 'shadow' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    ORDER BY name"""
SQLITE_COLUMNS = "SELECT name || ' ' || type FROM pragma_table_info(?) ORDER BY cid"
DUCKDB_COLUMNS = """
    SELECT table_name, column_name || ' ' || data_type FROM duckdb_columns()
    WHERE NOT internal ORDER BY table_name, column_index"""
HINT = "one SELECT is allowed; sql.tables lists what there is"

Database = Annotated[
    str, Meta(description="a path in storage, or the absolute path of a file; SQLite or DuckDB")
]


class Table(msgspec.Struct, omit_defaults=True):
    name: str
    columns: list[str]  # each with its type
    problem: str = ""  # why it cannot be read


@dataclass
class Rows:
    columns: list[str]
    rows: list[list[Any]]
    more: bool  # there are rows that are not shown


@tool(name="sql.tables", timeout=60)
def tables(database: Database, job: Running) -> list[Table]:
    """List the tables and views of a database, with their columns."""
    with _file(database, job) as path:
        if _is_sqlite(path):
            return _sqlite_tables(path)
        pairs = _duckdb(path, DUCKDB_COLUMNS, MAX_COLUMNS).rows
    found: dict[str, list[str]] = {}
    for table, column in pairs:
        found.setdefault(table, []).append(column.strip())
    return [Table(name, columns) for name, columns in found.items()]


@tool(name="sql.query", timeout=60)
def query(
    database: Database,
    query: Annotated[str, Meta(max_length=20_000, description="one SELECT")],
    job: Running,
    rows: Annotated[int, Meta(ge=1, le=1000, description="rows at most")] = 100,
) -> Rows:
    """Ask a database with one SELECT. It is opened read-only."""
    with _file(database, job) as path:
        return (_sqlite if _is_sqlite(path) else _duckdb)(path, query, rows)


@contextlib.contextmanager
def _file(database: str, job: Running) -> Iterator[Path]:
    """Return the database as a file."""
    if database.startswith("/"):
        yield Path(database)
        return
    size = job.aios.sto_read(database, count=0).info.size
    if size > MAX_BYTES:
        raise ToolFailed(f"{database} has {size} bytes, and at most {MAX_BYTES} can be opened")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "database")
        with path.open("wb") as file:
            for part in job.aios.sto_stream(database):
                file.write(part)
        yield path


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise ToolFailed(f"{path} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database. Raises ToolFailed, also for errors within the block."""
    limit = time.monotonic() + TIMEOUT_S
    try:
        with closing(sqlite3.connect(_address(path), uri=True)) as connection:
            connection.text_factory = lambda data: data.decode(errors="replace")
            connection.execute("PRAGMA query_only = ON")
            connection.execute(f"PRAGMA hard_heap_limit = {MAX_MEMORY_BYTES}")
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000_000)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            connection.set_progress_handler(lambda: time.monotonic() > limit, STEPS_BETWEEN_CHECKS)
            yield connection
    except (sqlite3.Error, sqlite3.Warning, MemoryError) as error:
        raise ToolFailed(f"SQLite: {_reason(str(error) or 'out of memory')}", HINT) from error


def _sqlite(path: Path, query: str, count: int) -> Rows:
    with _connected(path) as connection:
        connection.set_authorizer(_allowed)
        cursor = connection.execute(query)
        if cursor.description is None:
            raise ToolFailed("that is no SELECT", HINT)
        return _rows([column[0] for column in cursor.description], cursor, count)


def _sqlite_tables(path: Path) -> list[Table]:
    """List tables, each by itself: a view may be of what is gone, a virtual table of a module that
    is missing."""
    found: list[Table] = []
    room = MAX_COLUMNS
    with _connected(path) as connection:
        for (name,) in connection.execute(SQLITE_TABLES).fetchmany(MAX_COLUMNS):
            table = Table(name, [])
            try:
                columns = connection.execute(SQLITE_COLUMNS, (name,)).fetchmany(room)
                table.columns = [column.strip() for (column,) in columns]
            except sqlite3.OperationalError as error:
                if "interrupt" in str(error):
                    raise
                table.problem = str(error)[:1000]
            found.append(table)
            room -= len(table.columns)
    return found


def _address(path: Path) -> str:
    """Return the URI of a database. With an idle write-ahead journal it is immutable: else SQLite
    would make files beside it."""
    with path.open("rb") as file:
        journal = file.read(20)[18:20] == b"\2\2"  # write-ahead
    idle = journal and not path.with_name(path.name + "-wal").exists()
    return f"{path.absolute().as_uri()}?mode=ro" + "&immutable=1" * idle


def _allowed(action: int, what: str | None, *_: str | None) -> int:
    fine = action in READS or (action, what) in OPENS
    return sqlite3.SQLITE_OK if fine else sqlite3.SQLITE_DENY


def _duckdb(path: Path, query: str, count: int) -> Rows:
    try:
        with duckdb.connect(path, read_only=True, config=DUCKDB) as connection:
            statements = connection.extract_statements(query)
            if [one.type for one in statements] != [duckdb.StatementType.SELECT]:
                raise ToolFailed("that is not one SELECT", HINT)
            timer = threading.Timer(TIMEOUT_S, connection.interrupt)
            timer.start()
            try:
                cursor = connection.execute(statements[0])
                columns = [column[0] for column in cursor.description or ()]
                return _rows(columns, iter(cursor.fetchone, None), count)
            finally:
                timer.cancel()
    except duckdb.Error as error:
        raise ToolFailed(f"DuckDB: {_reason(str(error))}", HINT) from error


def _reason(error: str) -> str:
    took_too_long = "interrupt" in error.lower()
    return f"the query took longer than {TIMEOUT_S:g} s" if took_too_long else error[:1000]


def _rows(columns: list[str], found: Iterator[Any], count: int) -> Rows:
    rows: list[list[Any]] = []
    room = MAX_RESULT_CHARS
    for row in found:
        if len(rows) == count or room < 0:
            return Rows(columns, rows, more=True)
        cells = [_cell(value) for value in row]
        room -= sum(len(cell) if isinstance(cell, str) else 8 for cell in cells)
        rows.append(cells)
    return Rows(columns, rows, more=False)


def _cell(value: Any) -> Any:
    """Return a value as JSON has it, a long text cut."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    text = str(value)
    return (
        text
        if len(text) <= MAX_CELL_CHARS
        else f"{text[:MAX_CELL_CHARS]}... ({len(text)} characters)"
    )
