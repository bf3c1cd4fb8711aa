"""The toolbox sql: answers from SQLite and DuckDB, and nothing else."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from databases import duckdb_file, sqlite_file
from jobs import FOLDER, NO_KERNEL, Job
from shipped import run

from aios.agents.tools import sql
from aios.syscalls.errors import NotFound, ToolArguments, ToolFailed


@pytest.fixture(params=["sqlite", "duckdb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make = {"sqlite": sqlite_file, "duckdb": duckdb_file}[request.param]
    return make(tmp_path / "ships.db")


def test_sql_lists_tables_and_views(tmp_path: Path) -> None:
    lite, duck = sqlite_file(tmp_path / "a.db"), duckdb_file(tmp_path / "b.db")
    assert run("sql.tables", database=str(lite)) == [
        {"name": "long", "columns": ["name TEXT"]},
        {"name": "notes", "columns": ["text"]},
        {"name": "ships", "columns": ["name TEXT", "length REAL", "photo BLOB"]},
    ]
    columns = ["name VARCHAR", "length DOUBLE", "built DATE"]
    assert run("sql.tables", database=str(duck)) == [{"name": "ships", "columns": columns}]


def test_sql_lists_the_rest_of_a_database_with_what_cannot_be_read(tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "a.db")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = 'CREATE TABLE ships (n)' WHERE name = 'ships'")
        values = "('table', 'odd', 'odd', 0, 'CREATE VIRTUAL TABLE odd USING nosuch(a)')"
        db.execute(f"INSERT INTO sqlite_schema VALUES {values}")
        db.commit()
    assert run("sql.tables", database=str(path)) == [
        {"name": "long", "columns": [], "problem": "no such column: name"},
        {"name": "notes", "columns": ["text"]},
        {"name": "odd", "columns": [], "problem": "no such module: nosuch"},
        {"name": "ships", "columns": ["n"]},
    ]


def test_sqlite_shows_a_text_that_is_not_utf_8(tmp_path: Path) -> None:
    query = "SELECT name, cast(x'61ff62' AS TEXT) FROM ships ORDER BY name"
    found = run("sql.query", database=str(sqlite_file(tmp_path / "a.db")), query=query)
    assert found["rows"] == [["Elba", "a\ufffdb"], ["Tejo", "a\ufffdb"]]


def test_duckdb_has_times_with_a_zone(tmp_path: Path) -> None:
    path = str(duckdb_file(tmp_path / "a.db"))
    query = "SELECT current_timestamp, TIMESTAMPTZ '2026-01-31 10:00:00+00', [now()]"
    ((now, then, several),) = run("sql.query", database=path, query=query)["rows"]
    assert datetime.fromisoformat(then) == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert datetime.fromisoformat(now).tzinfo is not None
    assert several.startswith("[datetime.datetime(")


def test_sql_answers(tmp_path: Path) -> None:
    lite, duck = sqlite_file(tmp_path / "a.db"), duckdb_file(tmp_path / "b.db")
    assert run("sql.query", database=str(lite), query="SELECT * FROM ships ORDER BY name") == {
        "columns": ["name", "length", "photo"],
        "rows": [["Elba", 31.5, "2 bytes"], ["Tejo", None, None]],
        "more": False,
    }
    for query, cell in {
        "SELECT count(*) FROM long": 1,
        "SELECT text FROM notes WHERE notes MATCH 'ferries OR ferry'": "the ferry leaves at nine",
        "SELECT sum(value) FROM json_each('[1, 2]')": 3,
    }.items():
        assert run("sql.query", database=str(lite), query=query)["rows"] == [[cell]]
    assert run("sql.query", database=str(duck), query="FROM ships ORDER BY name")["rows"] == [
        ["Elba", 31.5, "1990-01-31"], ["Tejo", None, None],
    ]  # fmt: skip


def test_sql_reads_a_database_in_storage(job: Job, database: Path) -> None:
    with database.open("rb") as file:
        job.aios.sto_put(f"{FOLDER}/ships.db", file)
    found = run("sql.query", job, database=f"{FOLDER}/ships.db", query="SELECT name FROM ships")
    assert sorted(found["rows"]) == [["Elba"], ["Tejo"]]
    with pytest.raises(NotFound):
        run("sql.tables", job, database=f"{FOLDER}/other.db")


def test_sql_reads_a_journal_that_nobody_has_open(tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "wal.db", "wal")
    run("sql.query", database=str(path), query="SELECT 1 FROM ships")
    assert [file.name for file in tmp_path.iterdir()] == ["wal.db"]  # nothing had to be made
    with contextlib.closing(sqlite3.connect(path)) as db:  # somebody has it open and writes
        db.execute("INSERT INTO ships VALUES ('Douro', 1, NULL)")
        db.commit()
        found = run("sql.query", database=str(path), query="SELECT count(*) FROM ships")
        assert found["rows"] == [[3]]


ATTACKS = [
    "ATTACH '{other}' AS other", "DETACH main", "PRAGMA query_only = OFF",
    "PRAGMA writable_schema = ON", "PRAGMA database_list",
    "PRAGMA hard_heap_limit = 0", "SELECT load_extension('x')", "LOAD '{other}'",
    "INSERT INTO ships (name) VALUES ('x')", "UPDATE ships SET name = 'x'", "DELETE FROM ships",
    "UPDATE sqlite_master SET sql = 'x'", "DROP TABLE ships", "CREATE TABLE x (a INT)",
    "CREATE TEMP TABLE x AS SELECT 1", "BEGIN", "VACUUM INTO '{other}'", "VACUUM",
    "COPY ships TO '{other}'", "COPY (SELECT 1) TO '{other}'", "EXPORT DATABASE '{other}'",
    "INSTALL httpfs", "SET enable_external_access = true", "RESET lock_configuration",
    "SELECT * FROM read_csv('{secret}')", "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM '{secret}'", "SELECT * FROM glob('/etc/*')", "SELECT readfile('{secret}')",
    "SELECT writefile('{other}', 'x')", "SELECT 1; DROP TABLE ships",
    "WITH x AS (SELECT 1) INSERT INTO ships (name) SELECT 1",
    "EXPLAIN ANALYZE COPY ships TO '{other}'",
    "SELECT 1;;SELECT 2", "", ";", "--", "nonsense",
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_sql_neither_writes_nor_reaches_elsewhere(
    attack: str, database: Path, tmp_path: Path
) -> None:
    before = database.read_bytes()
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    query = attack.format(other=tmp_path / "other", secret=secret)
    with pytest.raises((ToolFailed, ToolArguments)) as caught:
        run("sql.query", database=str(database), query=query)
    assert "a secret" not in str(caught.value)
    assert database.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["secret.txt", "ships.db"]


def test_duckdb_sees_no_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "numbers", {"a": np.arange(3)}, raising=False)
    with pytest.raises(ToolFailed, match="numbers does not exist"):
        path = str(duckdb_file(tmp_path / "a.db"))
        sql.query.run({"database": path, "query": "SELECT * FROM numbers"}, NO_KERNEL)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"


def test_sql_ends_a_query_that_takes_too_long(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "TIMEOUT_S", 0.3)
    with pytest.raises(ToolFailed, match=r"longer than 0\.3 s"):
        sql.query.run({"database": str(database), "query": ENDLESS.format("count(*)")}, NO_KERNEL)


def test_sql_keeps_answers_small(database: Path) -> None:
    found = run("sql.query", database=str(database), query=ENDLESS.format("i"), rows=5)
    assert (found["rows"], found["more"]) == ([[1], [2], [3], [4], [5]], True)
    wide = f"'{'a' * 5000}' || i"
    found = run("sql.query", database=str(database), query=ENDLESS.format(wide), rows=1000)
    assert found["more"]
    assert found["rows"][0][0].endswith("... (5001 characters)")
    assert len(json.dumps(found)) < 250_000


def test_sqlite_makes_no_giants(tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "a.db")
    with pytest.raises(ToolFailed, match="too big"):
        run("sql.query", database=str(path), query="SELECT hex(zeroblob(1000000000))")


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"", "DuckDB"), (b"text", "not a valid")]
)
def test_sql_says_what_is_no_database(content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.db").write_bytes(content)
    with pytest.raises(ToolFailed, match=reason):
        run("sql.tables", database=str(tmp_path / "x.db"))


def test_sql_reads_no_damaged_database(tmp_path: Path) -> None:
    path = sqlite_file(tmp_path / "a.db")
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 5000)
    with pytest.raises(ToolFailed, match=r"SQLite: .*malformed"):
        run("sql.query", database=str(path), query="SELECT * FROM ships")
