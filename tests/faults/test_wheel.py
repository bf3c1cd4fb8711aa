"""A wheel, installed where there is no checkout: what it lacks it says, with lines that work.

`make faults` alone has it: it installs all that AIOS depends on, from the package index.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from places import PROJECT


def test_a_wheel_works_elsewhere(tmp_path: Path, homes: Path) -> None:
    wheels, venv = tmp_path / "wheels", tmp_path / "venv"
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIOS")}
    env |= {"AIOS_HOME": str(homes / "wheel"), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}

    def shell(line: str, code: int = 0) -> str:
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True,
            check=False, timeout=1800,
        )  # fmt: skip
        assert done.returncode == code, (line, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def hint(said: str) -> str:
        """The line behind "pip install" in what was said."""
        return "pip install" + said.partition("pip install")[2].partition(";")[0].splitlines()[0]

    shell(f"{sys.executable} -m pip wheel --quiet --no-deps --wheel-dir {wheels} {PROJECT}")
    shell(f"{sys.executable} -m venv {venv}")
    (wheel,) = wheels.glob("aios_system-*.whl")
    shell(f"pip install --quiet --constraint {PROJECT / 'constraints.txt'} {wheel}")
    shell("aios --version && aios agents && aios status", code=3)

    said = shell("aios start --detach", code=78)
    assert "the embedded model is not installed" in said
    shell(hint(said))
    shell("aios start --detach --slots 1 --ctx 1024")
    try:
        shell('echo "The ferry to Almada leaves at nine." | aios sto put trips/ferry')
        assert "trips/ferry" in shell("aios sto search ferry --fresh")
        missing = shell("aios status").partition("search by meaning: ")[2]
        assert missing
        shell(hint(missing))
    finally:
        shell("aios stop")
    shell("aios start --detach --slots 1 --ctx 1024")
    try:
        assert "trips/ferry" in shell("aios sto search boat --mode meaning --fresh")
        assert "search by meaning" not in shell("aios status")
        said = shell("aios run summarize")
        assert "summary" in said
        assert "aios-system[tools]" in shell("aios tool call calculate expression=1", code=1)
    finally:
        shell("aios stop")
