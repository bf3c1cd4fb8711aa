"""docs/agents.md is run: its files are saved, its scripts are run beside them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from places import DOCS

from aios.shell.launch import System

GUIDE = DOCS / "agents.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_every_block_of_the_guide_runs(system: System, tmp_path: Path) -> None:
    env = os.environ | {"AIOS_HOME": str(system.home)}
    ran = 0
    for block in BLOCKS:
        named = re.match(r"# (\w+\.py)\n", block)
        if named:
            (tmp_path / named[1]).write_text(block)
            continue
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=env,
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        ran += 1
    assert ran and {path.name for path in tmp_path.glob("*.py")} == {
        "headline.py", "crowd.py", "echo.py"
    }  # fmt: skip
