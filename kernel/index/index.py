"""The index: passages of documents with their words and vectors, and searches for the best."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aios.syscalls.sto import Hit, Standing

from ..lib.callbacks import ignore
from . import ranking
from .database import FILE_NAME, IndexDamaged, checksum, connect, damage_raised, remove, set_aside
from .embedder import Embedder, WordsOnly
from .passage_arrays import PassageArrays
from .passages import cut
from .protocol import Change, PutDocument, Search
from .ranking import Ids, Scores

MAX_QUERY_CHARS = 10_000  # the rest is not read
MAX_QUERY_TERMS = 32  # the rest is not looked up
CACHED_SCOPES = 16  # of recent searches, with the passages they may look at
WORD = re.compile(r"\w+")

ALL_PASSAGES = (
    "SELECT passages.id, text, vector, checksum, owner, path, version, time, start, end, length"
    " FROM passages JOIN documents ON documents.id = document ORDER BY passages.id"
)
HitFields = tuple[str, str, int, int, int, str]
HIT_BY_ID = (
    "SELECT owner, path, version, start, end, text FROM passages"
    " JOIN documents ON documents.id = document WHERE passages.id = ?"
)

# Lucene's list for English, which bm25s has too.
STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with"
)


class Index:
    """An index in a folder. When `apply` returns, its changes are durable along with `position`,
    the number of the last of them.

    Any method raises IndexDamaged if the file is; after that, call nothing but `begin_again`.
    """

    def __init__(self, folder: Path | None, embedder: Embedder) -> None:
        """Open the index. Without a folder it is in RAM, and the next one begins empty.

        Raises:
            OSError, sqlite3.OperationalError: the folder or the file cannot be opened or made.
        """
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.embedder = folder, embedder
        self.began_again = ""  # why the file that was there could not be used
        try:
            self._open()
        except IndexDamaged as damaged:
            self._set_aside(str(damaged))
        self.stop_words = set(self._terms_of(STOP_WORDS))

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
        file = ":memory:" if self.folder is None else self.folder / FILE_NAME
        self.db = connect(file, self.embedder.name)
        try:
            with damage_raised():
                self._load()
        except BaseException:
            self.db.close()
            raise

    def _load(self) -> None:
        self.store, self.position = self.db.execute("SELECT store, position FROM state").fetchone()
        (self.documents,) = self.db.execute("SELECT count(*) FROM documents").fetchone()
        self.arrays = PassageArrays(self.embedder.dim)
        self.readable_cache: dict[object, Ids] = {}
        found = self.db.execute(ALL_PASSAGES)
        while some := found.fetchmany(4096):
            for _, text, vector, expected, *place in some:
                if checksum(tuple(place), text, vector) != expected:
                    raise IndexDamaged("a passage is not as it was written")
            vectors = np.frombuffer(b"".join(row[2] for row in some), np.float16)
            self.arrays.put(
                [row[0] for row in some],
                vectors.reshape(len(some), -1)[:, : self.embedder.dim].astype(np.float32),
                [row[-1] for row in some],
            )

    @property
    def passages(self) -> int:
        return self.arrays.end - len(self.arrays.free)

    def close(self) -> None:
        self.db.close()

    # --- in --------------------------------------------------------------------------------------

    def reset(self, store: str, drop: bool) -> None:
        """Empty the index, unless it is about this store and `drop` is false."""
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

    def apply(self, changes: Sequence[Change], between: Callable[[], None] = ignore) -> None:
        """Apply all of `changes`, or none. They are in the order of their `seq`, and the last one's
        becomes the position. `between` is called before the model reads a passage, which may take
        long; it may search, and an exception of it aborts the work.

        Raises:
            sqlite3.OperationalError: the file cannot be written now; nothing has changed.
            ModelError: there is no model; nothing has changed.
        """
        newest = {(change.owner, change.path): change for change in changes}
        puts = [change for change in newest.values() if isinstance(change, PutDocument)]
        spans = [(put, span) for put in puts for span in cut(put.text)]
        texts = [put.text[start:end] for put, (start, end) in spans]
        vectors = self._vectors(texts, between)
        lengths = [len(WORD.findall(text)) for text in texts]
        ids = self.arrays.unused(len(spans))
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
        self.readable_cache.clear()
        self.arrays.put(ids, vectors.astype(np.float32), lengths)
        self.arrays.remove(gone)

    def _vectors(self, texts: list[str], between: Callable[[], None]) -> NDArray[np.float16]:
        vectors = np.empty((len(texts), self.embedder.dim), np.float16)
        for at, text in enumerate(texts):
            between()
            vectors[at] = self.embedder.passage(text)
        return vectors

    def _insert(self, put: PutDocument) -> int:
        document = self.db.execute(
            "INSERT INTO documents(owner, path, version, time) VALUES (?, ?, ?, ?)",
            (put.owner, put.path, put.version, put.time),
        ).lastrowid
        assert document is not None
        self.db.executemany("INSERT INTO tags VALUES (?, ?)", [(document, t) for t in {*put.tags}])
        return document

    def _remove(self, change: Change) -> list[int]:
        """Remove a document, if it is there, and return the ids of its passages."""
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
        with damage_raised():
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
        """Return the best passages that the search may look at, best first.

        Raises:
            sqlite3.OperationalError: the file cannot be read now.
            ModelError: there is no model, and the search is not by words only.
        """
        query = search.query[:MAX_QUERY_CHARS]
        with damage_raised():
            ids = self._readable(search)
            if not len(ids):
                return []
            words = meaning = np.zeros(len(ids))
            if search.mode != "meaning":
                scores = words = self._by_words(query, ids)
            without = search.mode == "fused" and isinstance(self.embedder, WordsOnly)
            if search.mode != "words" and not without:
                scores = meaning = self._by_meaning(query, ids)
            if search.mode == "fused":
                scores = ranking.fuse(words, meaning)
            chosen = self._best_passages(ids, scores, search.count)
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
        return ranking.bm25(map(self._postings, self.terms(query)), ids, self.arrays.lengths)

    def _by_meaning(self, query: str, ids: Ids) -> Scores:
        return ranking.cosine(self.arrays.vectors, self.embedder.query(query), ids)

    def terms(self, query: str) -> list[str]:
        """Return the terms to look up for a query: stop words only if it has nothing else."""
        terms = self._terms_of(query)
        return ([term for term in terms if term not in self.stop_words] or terms)[:MAX_QUERY_TERMS]

    def _terms_of(self, text: str) -> list[str]:
        """Return a text's terms as the index has them, each once, in the text's order."""
        self.db.execute("DELETE FROM asked")
        self.db.execute("INSERT INTO asked VALUES (?)", (text,))
        rows = self.db.execute("SELECT term FROM asked_terms ORDER BY offset").fetchall()
        return [*dict.fromkeys(term for (term,) in rows)]

    def _postings(self, term: str) -> tuple[Ids, Ids]:
        """Return the passages that have a term, and how often each has it."""
        rows = self.db.execute(
            "SELECT doc, count(*) FROM postings WHERE term = ? GROUP BY doc", (term,)
        ).fetchall()
        found = np.array(rows, np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def _best_passages(self, ids: Ids, scores: Scores, count: int) -> list[tuple[int, HitFields]]:
        """Return the best passages as (index into `ids`, fields), best first. Ties are in the order
        of owner and path, since ids depend on the other documents in the index."""
        found = [
            (int(at), self.db.execute(HIT_BY_ID, (int(ids[at]),)).fetchone())
            for at in ranking.top(scores, count)
        ]
        found.sort(key=lambda one: (-scores[one[0]], one[1]))
        return found[:count]

    def _readable(self, search: Search) -> Ids:
        """Return the passages that a search may look at; cached until the index changes."""
        scopes, tags = frozenset(search.scopes), frozenset(search.tags)
        key = (scopes, search.since, search.until, tags)
        if key not in self.readable_cache:
            if len(self.readable_cache) == CACHED_SCOPES:
                del self.readable_cache[next(iter(self.readable_cache))]
            covered = [self._covered(scope, search, tags) for scope in scopes]
            self.readable_cache[key] = np.unique(np.concatenate([np.empty(0, np.int64), *covered]))
        return self.readable_cache[key]

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
