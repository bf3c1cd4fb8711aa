"""A tool that tries to get out: the tables of probes, from inside a worker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))
from probes.attacks import attack

from aios.agents.tools import Running, tool


@tool(name="probes", timeout=120)
def probes(table: str, targets: dict[str, Any], job: Running) -> dict[str, str]:
    """By probe, what it got or what stopped it."""
    return attack({"table": table, "targets": targets}, job.aios)
