"""The base class of agents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from aios.agents.sdk.aios import Aios


class Agent(ABC):
    """Subclass it in a file, and `aios run FILE` runs it as a process of its own.

    The value that `run` returns is the result of the agent, for its parent. An exception ends it
    with exit code 1, and the traceback is in its log.
    """

    name: ClassVar[str] = ""  # of its process, unless its spawner gives another

    def __init__(self, aios: Aios) -> None:
        self.aios = aios

    @abstractmethod
    def run(self, task: Any) -> Any:
        """Do the task. It and the result are of msgpack's types. `run` may be `async def`."""
