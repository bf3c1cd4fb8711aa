"""The index's file: SQLite, with its own words (FTS5), and the vectors beside the passages."""

from __future__ import annotations

import sqlite3
import sys
import zlib
from pathlib import Path

import msgspec

NAME, ASIDE = "index.db", "index.db.bad"
APPLICATION, FORMAT = 0x41494F53, 1  # what SQLite's header says of a file: whose it is, which form

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
# What is asked for goes through the same tokenizer, as a text: no query is ever read as FTS syntax.
FOR_SEARCH = """
CREATE VIRTUAL TABLE temp.postings USING fts5vocab(main, words, instance);
CREATE VIRTUAL TABLE temp.asked USING fts5(text, tokenize='porter unicode61');
CREATE VIRTUAL TABLE temp.asked_terms USING fts5vocab(temp, asked, instance);
"""


class Damaged(Exception):
    """The file is not what this version of AIOS wrote, or it cannot be read any more."""


# No change conflicts with what a sound file holds.
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it is the file, and not the disk's room, a lock or a failing device.

    An error without a code is the sqlite3 module's own: a text that is not UTF-8 any more.
    """
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in DAMAGE


def connect(path: Path | str, embedder: str) -> sqlite3.Connection:
    """Open the file, making it if there is none. `embedder` is the name of the model that it is
    for; empty: it is not known, and any is right.

    Raises:
        Damaged: it is no index, or one that this version or this model has no use for.
        sqlite3.OperationalError: it is locked, or there is no room.
    """
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=1)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA temp_store = MEMORY")
            _check(db, embedder)
            db.executescript(FOR_SEARCH)
        except BaseException:
            db.close()
            raise
    except sqlite3.Error as error:
        if is_damage(error):
            raise Damaged(str(error)) from error
        raise
    return db


def checksum(place: tuple[str, str, int, float, int, int, int], text: str, vector: bytes) -> int:
    """Of a passage: its document's owner, path, version and time, its start, end and length."""
    return zlib.crc32(msgspec.msgpack.encode((place, text, vector)))


def _check(db: sqlite3.Connection, embedder: str) -> None:
    if db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
        header = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};"
        db.executescript(f"BEGIN IMMEDIATE; {header} {SCHEMA}")
        db.execute("INSERT INTO state VALUES ('', ?, 0)", (embedder,))
        db.execute("COMMIT")
    if db.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
        raise Damaged("it is another program's file")
    if db.execute("PRAGMA user_version").fetchone() != (FORMAT,):
        raise Damaged("another version of AIOS wrote it")
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise Damaged(found.splitlines()[-1])
    db.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
    (made_with,) = db.execute("SELECT embedder FROM state").fetchone()
    if embedder and made_with != embedder:
        raise Damaged(f"it was made with another model, {made_with or 'which was missing'}")


def set_aside(folder: Path, why: str) -> None:
    """Make room for a new file; the old one is kept for a look, until the next is."""
    print(f"{NAME} is made again ({why}); the old one is {ASIDE}", file=sys.stderr, flush=True)
    (folder / NAME).replace(folder / ASIDE)
    remove(folder)


def remove(folder: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (folder / (NAME + suffix)).unlink(missing_ok=True)
