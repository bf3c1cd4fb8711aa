"""Ranking of passages: by words (BM25), by meaning (cosine), by both.

Scores are computed from the passages that the searcher may read, and from no others: they must not
tell how rare a word is in other agents' texts. Sums run in an order that does not depend on other
documents in the index, so scores are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

# Chosen on the queries of Cranfield with even numbers: bench/RESULTS.md.
WORD_WEIGHT = 0.5  # of the words' score in a fused one
K1, B = 1.2, 0.75  # BM25's usual constants, SQLite's as well

Scores = NDArray[np.float64]
Ids = NDArray[np.int64]


def bm25(postings: Iterable[tuple[Ids, Ids]], ids: Ids, lengths: NDArray[np.float32]) -> Scores:
    """Return the BM25 scores of the passages `ids`, shape (len(ids),).

    Args:
        postings: for each word of the query, the passages that have it, and how often.
        ids: passages, rising.
        lengths: the words of each passage in the index, by id.
    """
    place = np.full(len(lengths), -1)
    place[ids] = np.arange(len(ids))
    mine = lengths[ids].astype(np.float64)
    norm = K1 * (1 - B + B * mine / max(float(mine.mean()), 1.0))
    scores = np.zeros(len(ids))
    for found, counts in postings:
        readable = place[found] >= 0
        at, count = place[found[readable]], counts[readable]
        idf = np.log(1 + (len(ids) - len(at) + 0.5) / (len(at) + 0.5))
        scores[at] += idf * count * (K1 + 1) / (count + norm[at])
    return scores


def cosine(vectors: NDArray[np.float32], query: NDArray[np.float32], ids: Ids) -> Scores:
    """Return the cosine of `query`, shape (dim,), with each of the passages `ids`; `vectors` has
    the unit vectors of all passages, by id. A BLAS product would not be exact: how it adds up a row
    depends on where the row is."""
    if len(ids) * 4 < len(vectors):  # then copying these is quicker than computing all
        found: NDArray[np.float32] = np.einsum("ij,j->i", vectors[ids], query)
    else:
        found = np.einsum("ij,j->i", vectors, query)[ids]
    return found.astype(np.float64)


def fuse(words: Scores, meaning: Scores) -> Scores:
    """Return scores from 0 to 1: the words' score over the best one's, and the cosine, weighted."""
    highest = max(float(words.max()), 1e-12)
    return WORD_WEIGHT * words / highest + (1 - WORD_WEIGHT) * np.maximum(meaning, 0)


def top(scores: Scores, count: int) -> NDArray[np.intp]:
    """Return the indices of the `count` highest scores above 0, and of ties with the last."""
    if count < len(scores):
        limit = np.partition(scores, -count)[-count]
        return np.flatnonzero((scores >= limit) & (scores > 0))
    return np.flatnonzero(scores > 0)
