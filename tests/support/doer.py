"""An agent that does what a test tells it to."""

from __future__ import annotations

from typing import Any

from aios.agents import Aios

# Does each of the acts that it is sent, and says what came of it.
DOER = """
import json
while True:
    act = aios.recv().body
    try:
        said = eval(act)
    except AiosError as error:
        said = error.code
    aios.send('test', json.loads(json.dumps(said, default=repr)))
"""


class Agent:
    def __init__(self, aios: Aios, path: str, **how: Any) -> None:
        self.aios, self.pid = aios, aios.spawn(path, **how)

    def does(self, act: str) -> Any:
        self.aios.send(self.pid, act)
        return self.said()

    def said(self) -> Any:
        return self.aios.recv(self.pid, timeout=30).body
