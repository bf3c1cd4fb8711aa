"""The SDK above the system calls."""

from aios.agents.runtime.agent import Agent
from aios.agents.sdk.aios import Aios, connect
from aios.agents.sdk.contexts import Context, Generation
from aios.syscalls.errors import AiosError

__all__ = ["Agent", "Aios", "AiosError", "Context", "Generation", "connect"]
