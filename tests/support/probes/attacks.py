"""An agent that tries to get out, by tables of probes, each a way to reach what is not its own.

A probe returns what it got; what stops it raises. Its task names the targets and the table.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))
from probes.bombs import BOMBS
from probes.files import FILES
from probes.kernel import FLOODS, IDENTITY
from probes.modes import MODES, OWN
from probes.others import OTHERS
from probes.sockets import SOCKETS
from probes.system import LINUX

from aios.agents import Agent, Aios, AiosError

TABLES = {
    "files": FILES, "others": OTHERS, "sockets": SOCKETS, "linux": LINUX, "identity": IDENTITY,
    "modes": MODES, "own": OWN, "floods": FLOODS, "bombs": BOMBS,
}  # fmt: skip


def attack(task: Any, aios: Aios) -> dict[str, str]:
    """By probe, what it got or what stopped it."""
    targets, own = {**task["targets"], "aios": aios}, Path.cwd()
    found = {}
    for name, probe in TABLES[task["table"]].items():
        if task.get("only") in (None, name):
            os.chdir(own)
            try:
                found[name] = f"got {probe(targets)!r}"
            except (OSError, AiosError) as error:
                found[name] = f"refused: {error}"
    return found


class Attacker(Agent):
    def run(self, task: Any) -> dict[str, str]:
        return attack(task, self.aios)
