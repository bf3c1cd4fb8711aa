"""An agent that does what a test tells it to, and the person who tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from aios.agents import Aios, connect
from aios.shell.launch import System

Boot = Callable[..., System]

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


def person_alone(boot: Boot) -> Iterator[Aios]:
    """Yield a person's connection to a system that nobody else uses, and that is left whole."""
    with connect(boot(slots=1).home, "test") as aios:
        yield aios
        assert aios.check() == []


class Agent:
    def __init__(self, aios: Aios, path: str, **how: Any) -> None:
        self.aios, self.pid = aios, aios.spawn(path, **how)

    def does(self, act: str) -> Any:
        self.aios.send(self.pid, act)
        return self.said()

    def said(self) -> Any:
        return self.aios.recv(self.pid, timeout=30).body
