"""The decorator that makes a tool of a function, and the toolboxes that ship: one a file.

docs/tools.md says how to write tools.
"""

from aios.agents.runtime.tool import Running, tool

__all__ = ["Running", "tool"]
