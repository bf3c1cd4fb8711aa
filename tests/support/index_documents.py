"""Documents and searches for tests of the index."""

from __future__ import annotations

from functools import cache
from typing import Any

from aios.kernel.index.embedder import WordLlamaEmbedder
from aios.kernel.index.index import Index
from aios.kernel.index.protocol import PutDocument, RemoveDocument, Search
from aios.syscalls.sto import Hit, Mode

model = cache(WordLlamaEmbedder)  # loaded once

FOX = "The quick brown fox jumps over the lazy dog."
CAR = "Our automobile needs a new engine; the garage will repair it."
SEA = "Fishermen sail their boats out to the ocean before dawn."
ODD = [
    "",
    " \n\n ",
    "\0",
    "nul\0inside\0the text",
    "x" * 30_000,
    "?!... --- ;;;",
    "שלום עולם, זה טקסט מימין לשמאל",
    "日本語の文章。" * 500,
    "\ufffe\U0010ffff\u200b",
    'quotes " and \' and "" AND OR NOT NEAR(',
]


def put(seq: int, path: str, text: str, owner: str = "ann", **fields: Any) -> PutDocument:
    defaults: dict[str, Any] = {"epoch": 1, "version": 1, "time": 0.0, "tags": []}
    return PutDocument(seq=seq, owner=owner, path=path, text=text, **(defaults | fields))


def remove(seq: int, path: str, owner: str = "ann") -> RemoveDocument:
    return RemoveDocument(1, seq, owner, path)


def ask(query: str, mode: Mode = "fused", count: int = 10, **fields: Any) -> Search:
    fields = {"scopes": [("ann", "")]} | fields
    return Search(req=1, query=query, mode=mode, count=count, **fields)


def paths(index: Index, query: str, mode: Mode = "words", **fields: Any) -> list[str]:
    return [hit.path for hit in index.search(ask(query, mode, **fields))]


def sound(index: Index) -> None:
    """The words, the vectors in memory and the passages are about the same texts, and its position
    is that of the file."""
    assert index.db.execute("SELECT position FROM state").fetchone() == (index.position,)
    index.db.execute("INSERT INTO words(words, rank) VALUES ('integrity-check', 1)")
    ids = [id for (id,) in index.db.execute("SELECT id FROM passages ORDER BY id")]
    assert sorted([*ids, *index.arrays.free]) == [*range(index.arrays.end)]
    assert index.passages == len(ids)
    vectors = index.db.execute("SELECT vector FROM passages ORDER BY id").fetchall()
    in_memory = index.arrays.vectors[ids].astype("float16")
    assert [vector for (vector,) in vectors] == [row.tobytes() for row in in_memory]


def same(hits: list[Hit], texts: dict[str, str]) -> None:
    for hit in hits:
        assert hit.text == texts[hit.path][hit.start : hit.end]
