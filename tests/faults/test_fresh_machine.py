"""The README on a machine that has nothing of AIOS yet: a clone, `make run`, and all that follows.

`make faults` alone has it: it builds llama.cpp, unless pip has that in its cache.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from conftest import left_of
from places import PROJECT
from readme import follow


def cache_of_pip() -> str:
    return subprocess.check_output(["pip", "cache", "dir"], text=True).strip()


def test_a_clone_is_set_up_and_the_readme_followed(tmp_path: Path, homes: Path) -> None:
    clone, home = tmp_path / "clone", homes / "new"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    made = subprocess.run(  # `make faults` may run this: it is no make within another
        ["make", "run"], cwd=clone, env=alone, capture_output=True, text=True, check=False,
        timeout=3000,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "8 of 8 agents: output identical" in made.stdout
    assert made.stdout.endswith("To go on: . .venv/bin/activate && aios --help\n")
    follow(clone, home, PIP_CACHE_DIR=cache_of_pip())
    assert left_of(home) == []
