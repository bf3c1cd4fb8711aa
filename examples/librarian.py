"""Answer questions from a database and a folder of texts, by quoting what is found there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from aios.agents import Agent, AiosError
from aios.agents.reasoning import LoopLimits, ReAct
from aios.examples._texts import as_task

SQL = "You ask a database. Its tables: {}."
TEXTS = "You search texts."
SEARCHES: dict[str, dict[str, str]] = {
    "Where can I park?": {"query": "where to park"},
    "Is there a cafe?": {"query": "cafe"},
    "Who is the director?": {"query": "the director"},
}
ONE_CALL = LoopLimits(steps=1, calls=1, parallel=1, answer=160)


class Task(msgspec.Struct, forbid_unknown_fields=True):
    database: str
    folder: str
    ask: list[str]
    examples: dict[str, str] = {}


class Librarian(Agent):
    """Its task is {"database": path, "folder": path, "examples": {question: SELECT}, "ask":
    [question, ...]}; its result a list of {"tool", "args", "found": [line, ...]}.

    The database is asked first, the texts where it knows nothing. The model writes each call, held
    to the tool and its schema. The answer is what the call finds: a model of 135 million parameters
    asks better than it retells. It does not know whether it has asked for the right thing.
    """

    name = "librarian"

    def run(self, task: Any) -> list[dict[str, Any]]:
        job = as_task(self, task, Task)
        self.aios.sto_put("library/database", Path(job.database).read_bytes())
        for path in Path(job.folder).glob("*.txt"):
            self.aios.sto_put(f"library/texts/{path.name}", path.read_text())
        queries = {asked: {"query": sql} for asked, sql in job.examples.items()}
        database = {"database": "library/database", "rows": 20}
        texts = {"path": "library/texts", "count": 1}
        self.asked = [
            self.one_call("sql.query", SQL.format(self.tables()), database, queries),
            self.one_call("search", TEXTS, texts, SEARCHES),
        ]
        return [self.answer(question) for question in job.ask]

    def tables(self) -> str:
        found = self.aios.call_tool("sql.tables", {"database": "library/database"}).result().value
        columns = {table["name"]: [col.split()[0] for col in table["columns"]] for table in found}
        return ", ".join(f"{name}({', '.join(names)})" for name, names in columns.items())

    def one_call(
        self, tool: str, system: str, fixed: dict[str, Any], shots: dict[str, dict[str, str]]
    ) -> ReAct:
        return ReAct(
            self.aios, system=system, only=[tool], fixed={tool: fixed}, must_call=True,
            examples=[(asked, tool, args) for asked, args in shots.items()], limits=ONE_CALL,
        )  # fmt: skip

    def answer(self, question: str) -> dict[str, Any]:
        for agent in self.asked:
            for call in agent.run(question).calls:  # one, or none that was cut
                lines = [] if isinstance(call.end, AiosError) else found(call.end.value)
                if lines:
                    print(question, *lines, sep="\n  ")
                    return {"tool": call.request.name, "args": call.request.args, "found": lines}
        return {"tool": "", "args": {}, "found": []}


def found(value: Any) -> list[str]:
    """Return the result of a tool as lines: rows, or passages."""
    if isinstance(value, list):
        return [hit["text"] for hit in value]
    rows = [zip(value["columns"], row, strict=True) for row in value["rows"]]
    return [", ".join(f"{name}: {cell}" for name, cell in row) for row in rows]
