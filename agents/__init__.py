"""The SDK above the system calls."""

from aios.agents.runtime.agent import Agent
from aios.agents.sdk.aios import Aios, Context, Generation, connect
from aios.syscalls.errors import AiosError

__all__ = ["Agent", "Aios", "AiosError", "Context", "Generation", "connect"]
