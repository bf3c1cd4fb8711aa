"""The index: documents in, as passages with their words and vectors; the best passages out."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios.syscalls.sto import Hit, Standing

from . import ranking
from .database import NAME, Damaged, checksum, connect, is_damage, remove, set_aside
from .embedder import Embedder, WordsAlone
from .passages import cut
from .protocol import Change, Put, Search
from .ranking import Ids, Scores
from .rows import Rows

QUERY = 10_000  # characters of a query that are read
TERMS = 32  # words of a query that are looked up
SCOPES_KEPT = 16  # of recent searches: which passages they may look at
WORD = re.compile(r"\w+")

EVERYTHING = (
    "SELECT passages.id, text, vector, checksum, owner, path, version, time, start, end, length"
    " FROM passages JOIN documents ON documents.id = document ORDER BY passages.id"
)
Place = tuple[str, str, int, int, int, str]
HIT = (
    "SELECT owner, path, version, start, end, text FROM passages"
    " JOIN documents ON documents.id = document WHERE passages.id = ?"
)

# Lucene's list for English, which bm25s has too.
STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)


class Index:
    """What is indexed is durable when `apply` returns, along with how far it goes: `position`.

    Any method raises Damaged when the file turns out to be; then there is only `begin_again`.
    """

    def __init__(self, folder: Path | None, embedder: Embedder) -> None:
        """Without a folder all of it is in RAM: then the next one has to be told all again.

        Raises:
            OSError, sqlite3.OperationalError: the folder or the file cannot be opened or made.
        """
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.embedder = folder, embedder
        self.began_again = ""  # why what was there could not be used
        try:
            self._open()
        except Damaged as damaged:
            self._set_aside(str(damaged))
        self.stop = set(self._terms_of(STOP_WORDS))

    def begin_again(self, why: str) -> None:
        """Set the file aside, and start with an empty one."""
        self.close()
        self._set_aside(why)

    def _set_aside(self, why: str) -> None:
        if self.folder is not None:
            set_aside(self.folder, why)
        self.began_again = why
        self._open()

    def _open(self) -> None:
        file = ":memory:" if self.folder is None else self.folder / NAME
        self.db = connect(file, self.embedder.name)
        try:
            with _damage_named():
                self._load()
        except BaseException:
            self.db.close()
            raise

    def _load(self) -> None:
        self.store, self.position = self.db.execute("SELECT store, position FROM state").fetchone()
        (self.documents,) = self.db.execute("SELECT count(*) FROM documents").fetchone()
        self.rows = Rows(self.embedder.dim)
        self.readable: dict[object, Ids] = {}
        found = self.db.execute(EVERYTHING)
        while some := found.fetchmany(4096):
            for _, text, vector, expected, *place in some:
                if checksum(tuple(place), text, vector) != expected:
                    raise Damaged("a passage is not as it was written")
            vectors = np.frombuffer(b"".join(row[2] for row in some), np.float16)
            self.rows.put(
                [row[0] for row in some],
                vectors.reshape(len(some), -1)[:, : self.embedder.dim].astype(np.float32),
                [row[-1] for row in some],
            )

    @property
    def passages(self) -> int:
        return self.rows.end - len(self.rows.free)

    def close(self) -> None:
        self.db.close()

    # --- in --------------------------------------------------------------------------------------

    def reset(self, store: str, drop: bool) -> None:
        """Keep what is indexed if it came from this store and `drop` does not say otherwise."""
        if store == self.store and not drop:
            return
        if self.store not in ("", store):
            self.began_again = "it was of another store"
        self.close()
        if self.folder is not None:
            remove(self.folder)
        self._open()
        self.db.execute("UPDATE state SET store = ?", (store,))
        self.store = store

    def apply(self, changes: Sequence[Change], between: Callable[[], None] = lambda: None) -> None:
        """All of them, or none; `changes` are in the order of their `seq`, the last is the
        position then. `between` is called before each passage that the model reads, which may
        take long; it may search, and what it raises ends the work.

        Raises:
            sqlite3.OperationalError: it cannot be written now; nothing has changed.
            ModelError: there is no model; likewise.
        """
        newest = {(change.owner, change.path): change for change in changes}
        puts = [change for change in newest.values() if isinstance(change, Put)]
        spans = [(put, span) for put in puts for span in cut(put.text)]
        texts = [put.text[start:end] for put, (start, end) in spans]
        vectors = self._vectors(texts, between)
        lengths = [len(WORD.findall(text)) for text in texts]
        ids = self.rows.unused(len(spans))
        with self._transaction():
            gone = [id for change in newest.values() for id in self._remove(change)]
            document = {(put.owner, put.path): self._insert(put) for put in puts}
            for id, (put, span), length, vector, text in zip(
                ids, spans, lengths, vectors, texts, strict=True
            ):
                place = (put.owner, put.path, put.version, float(put.time), *span, length)
                self.db.execute(
                    "INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        id, document[put.owner, put.path], *span, length, vector.tobytes(), text,
                        checksum(place, text, vector.tobytes()),
                    ),
                )  # fmt: skip
            self.db.executemany(
                "INSERT INTO words(rowid, text) VALUES (?, ?)", zip(ids, texts, strict=True)
            )
            self.db.execute("UPDATE state SET position = ?", (changes[-1].seq,))
            (documents,) = self.db.execute("SELECT count(*) FROM documents").fetchone()
        self.position, self.documents = changes[-1].seq, documents
        self.readable.clear()
        self.rows.put(ids, vectors.astype(np.float32), lengths)
        self.rows.remove(gone)

    def _vectors(self, texts: list[str], between: Callable[[], None]) -> NDArray[np.float16]:
        vectors = np.empty((len(texts), self.embedder.dim), np.float16)
        for at, text in enumerate(texts):
            between()
            vectors[at] = self.embedder.passage(text)
        return vectors

    def _insert(self, put: Put) -> int:
        document = self.db.execute(
            "INSERT INTO documents(owner, path, version, time) VALUES (?, ?, ?, ?)",
            (put.owner, put.path, put.version, put.time),
        ).lastrowid
        assert document is not None
        self.db.executemany("INSERT INTO tags VALUES (?, ?)", [(document, t) for t in {*put.tags}])
        return document

    def _remove(self, change: Change) -> list[int]:
        """Its passages' ids."""
        document = self.db.execute(
            "SELECT id FROM documents WHERE owner = ? AND path = ?", (change.owner, change.path)
        ).fetchone()
        if document is None:
            return []
        rows = self.db.execute(
            "SELECT id, text FROM passages WHERE document = ?", document
        ).fetchall()
        self.db.executemany("INSERT INTO words(words, rowid, text) VALUES ('delete', ?, ?)", rows)
        self.db.execute("DELETE FROM passages WHERE document = ?", document)
        self.db.execute("DELETE FROM tags WHERE document = ?", document)
        self.db.execute("DELETE FROM documents WHERE id = ?", document)
        return [id for id, _ in rows]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _damage_named():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:  # SQLite may have rolled back by itself: a full disk
                    self.db.execute("ROLLBACK")
                raise

    # --- out -------------------------------------------------------------------------------------

    def search(self, search: Search) -> list[Hit]:
        """The best passages that the search may look at, best first.

        Raises:
            sqlite3.OperationalError: the file cannot be read now.
            ModelError: there is no model, and it was not asked by words alone.
        """
        query = search.query[:QUERY]
        with _damage_named():
            ids = self._readable(search)
            if not len(ids):
                return []
            words = meaning = np.zeros(len(ids))
            if search.mode != "meaning":
                scores = words = self._by_words(query, ids)
            without = search.mode == "fused" and isinstance(self.embedder, WordsAlone)
            if search.mode != "words" and not without:
                scores = meaning = self._by_meaning(query, ids)
            if search.mode == "fused":
                scores = ranking.fuse(words, meaning)
            chosen = self._chosen(ids, scores, search.count)
        return [
            Hit(
                owner=owner,
                path=path,
                version=version,
                start=start,
                end=end,
                text=text,
                score=float(scores[at]),
                words=_standing(words, at),
                meaning=_standing(meaning, at),
            )
            for at, (owner, path, version, start, end, text) in chosen
        ]

    def _by_words(self, query: str, ids: Ids) -> Scores:
        return ranking.bm25(map(self._postings, self.terms(query)), ids, self.rows.lengths)

    def _by_meaning(self, query: str, ids: Ids) -> Scores:
        return ranking.cosine(self.rows.vectors, self.embedder.query(query), ids)

    def terms(self, query: str) -> list[str]:
        """What is looked up for it: stop words only if there is nothing else."""
        terms = self._terms_of(query)
        return ([term for term in terms if term not in self.stop] or terms)[:TERMS]

    def _terms_of(self, text: str) -> list[str]:
        """As the index has them, each once, in the text's order."""
        self.db.execute("DELETE FROM asked")
        self.db.execute("INSERT INTO asked VALUES (?)", (text,))
        rows = self.db.execute("SELECT term FROM asked_terms ORDER BY offset").fetchall()
        return [*dict.fromkeys(term for (term,) in rows)]

    def _postings(self, term: str) -> tuple[Ids, Ids]:
        """The passages that have it, and how often."""
        rows = self.db.execute(
            "SELECT doc, count(*) FROM postings WHERE term = ? GROUP BY doc", (term,)
        ).fetchall()
        found = np.array(rows, np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def _chosen(self, ids: Ids, scores: Scores, count: int) -> list[tuple[int, Place]]:
        """Where the best are, and what is known of them. Equals are in the order of owner and path:
        their ids depend on what else is indexed."""
        found = [
            (int(at), self.db.execute(HIT, (int(ids[at]),)).fetchone())
            for at in ranking.top(scores, count)
        ]
        found.sort(key=lambda one: (-scores[one[0]], one[1]))
        return found[:count]

    def _readable(self, search: Search) -> Ids:
        """The passages that it may look at; remembered until something changes."""
        scopes, tags = frozenset(search.scopes), frozenset(search.tags)
        key = (scopes, search.since, search.until, tags)
        if key not in self.readable:
            if len(self.readable) == SCOPES_KEPT:
                del self.readable[next(iter(self.readable))]
            covered = [self._covered(scope, search, tags) for scope in scopes]
            self.readable[key] = np.unique(np.concatenate([np.empty(0, np.int64), *covered]))
        return self.readable[key]

    def _covered(self, scope: tuple[str, str], search: Search, tags: frozenset[str]) -> Ids:
        values: list[Any]
        owner, path = scope[0], scope[1].rstrip("/")
        where, values = ["owner = ?"], [owner]
        if path:
            where.append("(path = ? OR path > ? AND path < ?)")
            values += [path, path + "/", path + "0"]  # the character behind "/"
        if search.since is not None:
            where.append("time >= ?")
            values.append(search.since)
        if search.until is not None:
            where.append("time < ?")
            values.append(search.until)
        for tag in tags:
            where.append("EXISTS (SELECT 1 FROM tags WHERE document = documents.id AND tag = ?)")
            values.append(tag)
        rows = self.db.execute(
            "SELECT passages.id FROM documents JOIN passages ON document = documents.id WHERE "
            + " AND ".join(where),
            values,
        )
        return np.fromiter((id for (id,) in rows), np.int64)


def _standing(scores: Scores, at: int) -> Standing | None:
    if scores[at] <= 0:
        return None
    return Standing(score=float(scores[at]), rank=int((scores > scores[at]).sum()) + 1)


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise Damaged(str(error)) from error
        raise
