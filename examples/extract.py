"""Extract fields from a text: name, date, place, or whatever the task asks for."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from aios.agents import Agent
from aios.examples._texts import ALICE, as_task, read_text
from aios.syscalls.errors import ContextFull, TooBig

FIELDS = ["name", "animal", "color of its eyes", "date"]
SHOTS = """\
Text: The treaty was signed in Vienna on 9 June 1815 by Prince Metternich.
name: Prince Metternich
date: 9 June 1815
place: Vienna
email: none

Text: Please send the invoice for 40 chairs to Ms. Okoro, okoro@example.org.
name: Ms. Okoro
date: none
email: okoro@example.org
object: 40 chairs

Text: """


class Task(msgspec.Struct, forbid_unknown_fields=True):
    path: str | None = None
    text: str | None = None
    fields: list[str] = msgspec.field(default_factory=FIELDS.copy)


class Extract(Agent):
    """Its task is the path of a text, or {"path" or "text": ..., "fields": [...]}; its result
    {"fields": {field: value}}. Without a task it is the beginning of Alice.

    A value is a string of the text itself, or "" where the model finds none: what the model says
    that the text does not is left out.
    """

    name = "extract"

    def run(self, task: Any) -> dict[str, Any]:
        job = as_task(self, task, Task, "path")
        text = _plain(self.read(job.path) if job.text is None else job.text)
        found = {}
        with self.aios.open() as context:  # one for all fields: the text is prefilled once
            try:
                context.append(f"{SHOTS}{text}\n", raw=True)
            except (ContextFull, TooBig) as error:
                sys.exit(f"the text is too long: {error}")
            for field in job.fields:
                answer = context.generate(f"{field}:", raw=True, max_tokens=24, stop=["\n"])
                if answer.finish == "length":  # else the stop string is in the context already
                    context.append("\n", raw=True)
                value = _plain(answer.text)
                found[field] = value if value.casefold() in text.casefold() else ""
                print(f"{field}: {found[field]}")
        return {"fields": found}

    def read(self, path: str | None) -> str:
        return (
            read_text(path) if path is not None else "\n\n".join(read_text(ALICE).split("\n\n")[:3])
        )


def _plain(text: str) -> str:
    return " ".join(text.split())
