"""Extract fields from a text: name, date, place, or whatever the task asks for."""

from __future__ import annotations

from typing import Any

from aios.agents import Agent
from aios.examples._texts import ALICE, read_text

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


class Extract(Agent):
    """Its task is the path of a text, or {"path" or "text": ..., "fields": [...]}; its result
    {"fields": {field: value}}. Without a task it is the beginning of Alice.

    A value is a string of the text itself, or "" where the model finds none: what the model says
    that the text does not is left out.
    """

    name = "extract"

    def run(self, task: Any) -> dict[str, Any]:
        task = {"path": task} if isinstance(task, str) else task or {}
        text = _plain(task["text"] if "text" in task else self.read(task.get("path")))
        found = {}
        with self.aios.open() as context:  # one for all fields: the text is prefilled once
            context.append(f"{SHOTS}{text}\n", raw=True)
            for field in task.get("fields", FIELDS):
                answer = context.generate(f"{field}:", raw=True, max_tokens=24, stop=["\n"])
                if answer.finish == "length":  # else the stop string is in the context already
                    context.append("\n", raw=True)
                value = _plain(answer.text)
                found[field] = value if value.casefold() in text.casefold() else ""
                print(f"{field}: {found[field]}")
        return {"fields": found}

    def read(self, path: str | None) -> str:
        return read_text(path) if path else "\n\n".join(read_text(ALICE).split("\n\n")[:3])


def _plain(text: str) -> str:
    return " ".join(text.split())
