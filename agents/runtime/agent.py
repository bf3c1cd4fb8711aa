"""The base class of an agent: a name, and what it does with a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from aios.agents.sdk.aios import Aios


class Agent(ABC):
    """Subclass it in a file, and `aios run FILE` runs it as a process of its own.

    What `run` returns is the result that whoever waits for the agent gets; what it raises ends it
    with exit code 1 and the traceback in its log.
    """

    name: ClassVar[str] = ""  # what its process is listed as, unless its spawner says otherwise

    def __init__(self, aios: Aios) -> None:
        self.aios = aios

    @abstractmethod
    def run(self, task: Any) -> Any:
        """Do the task; msgpack types in and out. It may be `async def`."""
