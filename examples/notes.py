"""Notes that link: each gets tags from the model, and links to the notes it is nearest to.

After A-MEM (arXiv 2502.12110), as a layer on top of storage: `notes/0007` is the text, with its
tags; `links/0007` the names of its neighbours, which get a link back in the same batch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from aios.agents import Agent
from aios.examples._texts import as_task, usage
from aios.syscalls.errors import NotJson

MIN_COSINE = 0.35  # of two notes that are neighbours
TAGS = {
    "type": "array", "minItems": 1, "maxItems": 3,
    "items": {"type": "string", "pattern": "^[a-z]{3,16}$"},
}  # fmt: skip


class Task(msgspec.Struct, forbid_unknown_fields=True):
    learn: list[str] = []
    ask: str = ""


class Notes(Agent):
    """Its task is {"learn": [text, ...]}, {"ask": question}, or both; its result what it has noted
    and found: {"notes": {name: {"tags": [...], "links": [...]}}, "found": [text, ...]}.
    """

    name = "notes"

    def run(self, task: Any) -> dict[str, Any]:
        job = as_task(self, task, Task)
        if not (job.learn or job.ask):
            sys.exit(f"nothing to learn, and nothing to answer\n{usage(self)}")
        noted = dict(self.learn(text) for text in job.learn)
        found = self.ask(job.ask) if job.ask else []
        return {"notes": noted, "found": found}

    def learn(self, text: str) -> tuple[str, dict[str, list[str]]]:
        """Store a note. Return its name, tags and links."""
        number = sum(1 for _ in self.aios.sto_list("notes/"))
        name, tags, near = f"{number:04}", self.tags(text), self.near(text)
        changes: list[dict[str, Any]] = [
            {"path": f"notes/{name}", "data": text.encode(), "tags": tags, "if_version": 0},
            {"path": f"links/{name}", "data": json.dumps(near).encode()},
        ]
        for other in near:
            links = sorted({*self.links(other), name})
            changes.append({"path": f"links/{other}", "data": json.dumps(links).encode()})
        self.aios.sto_batch(changes)
        print(f"{name} {', '.join(tags)}; near {', '.join(near) or 'none'}")
        return name, {"tags": tags, "links": near}

    def ask(self, question: str) -> list[str]:
        """Return the note that answers best, and those that it links to."""
        hits = self.aios.sto_search(question, path="notes", count=1, fresh=True).hits
        names = [hit.path.removeprefix("notes/") for hit in hits]
        linked = [other for name in names for other in self.links(name)]
        return [self.aios.sto_get(f"notes/{name}").decode() for name in [*names, *linked]]

    def tags(self, text: str) -> list[str]:
        prompt = f"Give one to three keywords, single lowercase words, for this note:\n{text}"
        try:
            found: list[str] = self.aios.generate(prompt, schema=TAGS, max_tokens=48).json
        except NotJson:  # it went on past its tokens
            found = []
        return sorted(set(found))

    def near(self, text: str) -> list[str]:
        hits = self.aios.sto_search(text, mode="meaning", path="notes", fresh=True).hits
        paths = {hit.path for hit in hits if hit.score >= MIN_COSINE}
        return sorted(path.removeprefix("notes/") for path in paths)

    def links(self, name: str) -> list[str]:
        found: list[str] = json.loads(self.aios.sto_get(f"links/{name}"))
        return found
