"""Search over the texts in storage that the caller may read."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from aios.agents.runtime.tool import Running, tool


class Found(msgspec.Struct):
    path: str
    owner: str  # empty: a person's
    text: str
    score: float


@tool
def search(
    query: Annotated[str, Meta(min_length=1, max_length=4096)],
    job: Running,
    count: Annotated[int, Meta(ge=1, le=20)] = 5,
    path: Annotated[str, Meta(description="search below this path only")] = "",
) -> list[Found]:
    """Find passages of stored texts by their words and their meaning, the best first."""
    hits = job.aios.sto_search(query, count=count, path=path, fresh=True).hits
    return [Found(hit.path, hit.owner, hit.text, hit.score) for hit in hits]
