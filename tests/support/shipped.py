"""The tools that ship, and a call of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
from jobs import NO_KERNEL

from aios.agents import tools
from aios.agents.runtime.tool import Running, load_tools

BOXES = sorted(Path(tools.__path__[0]).glob("[a-z]*.py"))
ALL = {tool.name: tool for box in BOXES for tool in load_tools(str(box))}


def run(tool: str, job: Running = NO_KERNEL, **args: Any) -> Any:
    """Return the result of a call; it fits the schema that the tool gives of it."""
    found = ALL[tool].run(args, job)
    jsonschema.validate(found, ALL[tool].result or {})
    return found
