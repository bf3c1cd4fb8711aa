"""Retrieval: how good on the Cranfield collection, and how quick beside the libraries themselves.

Quality: recall and nDCG of the first ten documents, by words, by meaning and fused. The peer is the
better of the two alone. The share of the words in a fused score was chosen on the queries with even
numbers, so those with odd ones are also reported alone.

Time: the median of a search among passages made by shuffling those of the collection, of an agent
that may read all of them; the peer is FTS5 asked for the same words, and one numpy product. `first`
is a search behind a change, when what the agent may read is looked up anew.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar, get_args

import msgspec
import numpy as np

from aios.kernel.config import Prefixes
from aios.kernel.index.embedder import Embedder, open_embedder
from aios.kernel.index.index import STOP_WORDS, WORD, Index
from aios.kernel.index.protocol import PutDocument, Search
from aios.syscalls.errors import BadInput
from aios.syscalls.sto import Mode

from .common import Progress, Target, timed

TARGET = Target(1.0, at_least=True)
SIZES = (10_000, 100_000)  # passages
TOP_K = 10  # documents
TOP_PASSAGES = 60  # which surely come from that many documents
QUERIES, BATCH = 25, 500
RELEVANT = {"1", "2", "3", "4", "-1"}  # grades; 5 is none, -1 an odd way to say 1


Row = TypeVar("Row")


class Document(msgspec.Struct):
    id: int
    title: str
    text: str


class Query(msgspec.Struct):
    id: int
    text: str


class Collection:
    def __init__(self, folder: Path | None) -> None:
        try:
            if folder is None:
                raise FileNotFoundError("its folder was not given")
            self.documents = _read(folder / "docs.jsonl", Document)
            self.queries = _read(folder / "queries.jsonl", Query)
            rows = [line.split() for line in (folder / "qrels.tsv").read_text().splitlines()]
            self.answers: dict[int, set[int]] = {query.id: set() for query in self.queries}
            for query, document, grade in rows:
                if grade in RELEVANT:
                    self.answers[int(query)].add(int(document))
        except (OSError, msgspec.MsgspecError, ValueError, KeyError) as error:
            raise BadInput(
                f"the Cranfield collection cannot be read: {error}",
                "give --data FOLDER, with docs.jsonl (id, title, text), queries.jsonl (id, text) "
                "and qrels.tsv (query, document, grade) in it",
            ) from error


def _read(path: Path, row: type[Row]) -> list[Row]:
    return [msgspec.json.decode(line, type=row) for line in path.read_bytes().splitlines()]


def run(
    progress: Progress,
    data: Path | None = None,
    sizes: tuple[int, ...] = SIZES,
    embedder: Path | None = None,
) -> dict[str, Any]:
    collection = Collection(data)
    model = open_embedder(str(embedder or ""), Prefixes())
    ours: dict[str, float] = {}
    peer: dict[str, float] = {}
    quality(progress, collection, model, ours)
    for measure in (f"recall@{TOP_K}", f"ndcg@{TOP_K}"):
        peer[measure] = max(ours[f"{measure}_words"], ours[f"{measure}_meaning"])
    ratio = min(ours[measure] / alone for measure, alone in peer.items())
    for size in sizes:
        speed(progress, collection, model, size, ours, peer)
    return {"ratio": ratio, "ours": ours, "peer": peer}


def put(number: int, text: str) -> PutDocument:
    return PutDocument(0, number, "bench", str(number), 1, 0.0, [], text)


def ask(query: str, mode: Mode, count: int) -> Search:
    return Search(0, query, mode, count, [("bench", "")])


# --- quality -------------------------------------------------------------------------------------


def quality(
    progress: Progress, collection: Collection, model: Embedder, ours: dict[str, float]
) -> None:
    """Measure each ranking over all queries, the fused one also over the odd ones."""
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        index = Index(Path(folder), model)
        index.apply([put(doc.id, f"{doc.title}\n\n{doc.text}") for doc in collection.documents])
        for mode in get_args(Mode):
            progress(f"{len(collection.queries)} queries, {mode}")
            found = [
                grades(index, query, collection.answers[query.id], mode)
                for query in collection.queries
                if collection.answers[query.id]
            ]
            odd = [grade for grade in found if grade[0] % 2]
            tag = "" if mode == "fused" else f"_{mode}"
            for name, rows in ((tag, found), (f"{tag}_odd", odd)):
                ours[f"recall@{TOP_K}{name}"] = mean(recall for _, recall, _ in rows)
                ours[f"ndcg@{TOP_K}{name}"] = mean(ndcg for _, _, ndcg in rows)
        index.close()


def grades(index: Index, query: Query, answers: set[int], mode: Mode) -> tuple[int, float, float]:
    """Return the query's number, recall and nDCG. A document counts once, as it is judged once."""
    hits = index.search(ask(query.text, mode, TOP_PASSAGES))
    found = [*dict.fromkeys(int(hit.path) for hit in hits)][:TOP_K]
    gains = 1 / np.log2(np.arange(TOP_K) + 2)
    right = np.array([document in answers for document in found], bool)
    ideal = gains[: len(answers)].sum()
    return (
        query.id,
        float(right.sum() / len(answers)),
        float(gains[: len(found)][right].sum() / ideal),
    )


# --- time ----------------------------------------------------------------------------------------


def speed(
    progress: Progress, collection: Collection, model: Embedder, size: int,
    ours: dict[str, float], peer: dict[str, float],
) -> None:  # fmt: skip
    dice = random.Random(size)
    queries = [query.text for query in dice.sample(collection.queries, QUERIES)]
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        index = Index(Path(folder), model)
        begin = time.perf_counter()
        texts = shuffled(collection, size, dice)
        for start in range(0, size, BATCH):
            progress(f"{start} of {size} passages indexed")
            index.apply([put(start + at, next(texts)) for at in range(min(BATCH, size - start))])
        ours[f"indexed_per_second_{size}"] = size / (time.perf_counter() - begin)
        ours[f"first_ms_{size}"] = milliseconds(
            lambda: index.search(ask(queries[0], "meaning", TOP_K))
        )
        for mode in get_args(Mode):
            pairs = [both(index, query, mode) for query in queries]
            name = f"{mode}_ms_{size}"
            ours[name], peer[name] = (median(side) for side in zip(*pairs, strict=True))
            ours[f"{mode}_ratio_{size}"] = ours[name] / peer[name]
        index.close()


def shuffled(collection: Collection, size: int, dice: random.Random) -> Iterator[str]:
    """Yield texts of 200 words, from two documents each."""
    words = [document.text.split() for document in collection.documents]
    for _ in range(size):
        text = (dice.choice(words) + dice.choice(words))[:200]
        dice.shuffle(text)
        yield " ".join(text)


def milliseconds(work: Callable[[], object]) -> float:
    return timed(work, 1)[0] * 1000


def both(index: Index, query: str, mode: Mode) -> tuple[float, float]:
    """Return the milliseconds of the search, and of the libraries called for the same."""
    vector = index.embedder.query(query)
    words = dict.fromkeys(WORD.findall(query.lower()))
    match = " OR ".join(f'"{word}"' for word in words if word not in STOP_WORDS.split())

    def directly() -> None:
        if mode != "meaning":
            index.db.execute(
                "SELECT rowid, rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?",
                (match, TOP_K),
            ).fetchall()
        if mode != "words":
            np.argpartition(index.arrays.vectors @ vector, -TOP_K)[-TOP_K:]

    return milliseconds(lambda: index.search(ask(query, mode, TOP_K))), milliseconds(directly)
