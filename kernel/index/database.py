"""The index's file: an SQLite database of passages, their words (FTS5) and their vectors."""

from __future__ import annotations

import sqlite3
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

FILE_NAME, SET_ASIDE_NAME = "index.db", "index.db.bad"
APPLICATION_ID, FORMAT_VERSION = 0x41494F53, 1  # in SQLite's header

SCHEMA = """
CREATE TABLE state (store TEXT NOT NULL, embedder TEXT NOT NULL, position INTEGER NOT NULL);
CREATE TABLE documents (
    id INTEGER PRIMARY KEY, owner TEXT NOT NULL, path TEXT NOT NULL, version INTEGER NOT NULL,
    time REAL NOT NULL, UNIQUE (owner, path)
);
CREATE TABLE tags (
    document INTEGER NOT NULL, tag TEXT NOT NULL, PRIMARY KEY (document, tag)
) WITHOUT ROWID;
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, document INTEGER NOT NULL, start INTEGER NOT NULL,
    end INTEGER NOT NULL, length INTEGER NOT NULL, vector BLOB NOT NULL, text TEXT NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE INDEX passages_of ON passages (document);
CREATE VIRTUAL TABLE words USING fts5(
    text, content='passages', content_rowid='id', tokenize='porter unicode61'
);
"""
# A query goes through the same tokenizer, as a text: so none is ever read as FTS syntax.
SEARCH_SCHEMA = """
CREATE VIRTUAL TABLE temp.postings USING fts5vocab(main, words, instance);
CREATE VIRTUAL TABLE temp.asked USING fts5(text, tokenize='porter unicode61');
CREATE VIRTUAL TABLE temp.asked_terms USING fts5vocab(temp, asked, instance);
"""


class IndexDamaged(Exception):
    """The file is not one that this version of AIOS wrote, or cannot be read any more."""


# A conflict with a constraint is damage, too: no change conflicts with a sound file.
DAMAGE_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}


def _is_damage(error: sqlite3.Error) -> bool:
    """Return whether the file is at fault, and not a full disk, a lock or a failing device.

    An error without a code is the sqlite3 module's own: a text that is not UTF-8 any more.
    """
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in DAMAGE_CODES


@contextmanager
def damage_raised() -> Iterator[None]:
    """Raise IndexDamaged for an error of SQLite's that is damage."""
    try:
        yield
    except sqlite3.Error as error:
        if _is_damage(error):
            raise IndexDamaged(str(error)) from error
        raise


def connect(path: Path | str, embedder: str) -> sqlite3.Connection:
    """Open the file, or make it if there is none. `embedder` is the name of the model whose vectors
    it must have; empty: any will do.

    Raises:
        IndexDamaged: it is no index, or another version's or another model's.
        sqlite3.OperationalError: it is locked, or the disk is full.
    """
    with damage_raised():
        db = sqlite3.connect(path, isolation_level=None, timeout=1)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA temp_store = MEMORY")
            _check(db, embedder)
            db.executescript(SEARCH_SCHEMA)
        except BaseException:
            db.close()
            raise
    return db


def checksum(place: tuple[str, str, int, float, int, int, int], text: str, vector: bytes) -> int:
    """Return the checksum of a passage. `place` is its document's owner, path, version and time,
    and its own start, end and length."""
    return zlib.crc32(msgspec.msgpack.encode((place, text, vector)))


def _check(db: sqlite3.Connection, embedder: str) -> None:
    if db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
        header = (
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION};"
        )
        db.executescript(f"BEGIN IMMEDIATE; {header} {SCHEMA}")
        db.execute("INSERT INTO state VALUES ('', ?, 0)", (embedder,))
        db.execute("COMMIT")
    if db.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise IndexDamaged("it is another program's file")
    if db.execute("PRAGMA user_version").fetchone() != (FORMAT_VERSION,):
        raise IndexDamaged("another version of AIOS wrote it")
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise IndexDamaged(found.splitlines()[-1])
    db.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
    (made_with,) = db.execute("SELECT embedder FROM state").fetchone()
    if embedder and made_with != embedder:
        raise IndexDamaged(f"it was made with another model, {made_with or 'which was missing'}")


def set_aside(folder: Path, why: str) -> None:
    """Rename a damaged file, replacing the one set aside before; people may look into it."""
    print(
        f"{FILE_NAME} is made again ({why}); the old one is {SET_ASIDE_NAME}",
        file=sys.stderr,
        flush=True,
    )
    (folder / FILE_NAME).replace(folder / SET_ASIDE_NAME)
    remove(folder)


def remove(folder: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (folder / (FILE_NAME + suffix)).unlink(missing_ok=True)
