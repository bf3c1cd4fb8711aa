"""The SDK above the system calls."""

from aios.syscalls.errors import AiosError

from .agent import Agent
from .sdk import Aios, Context, Generation, connect

__all__ = ["Agent", "Aios", "AiosError", "Context", "Generation", "connect"]
