"""The README as somebody follows it: its files are saved, its commands are typed, from top to
bottom, in one shell."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from places import PROJECT

README = (PROJECT / "README.md").read_text()
BLOCKS = re.findall(r"^```(python|console)\n(.*?)^```$", README, re.M | re.DOTALL)
MARK = "--- the next command ---"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def saved(folder: Path) -> list[str]:
    """The files that its Python blocks are, each named in its first line."""
    names = []
    for language, block in BLOCKS:
        if language == "python":
            named = re.match(r"# (\w+\.py)\n", block)
            assert named, block
            (folder / named[1]).write_text(block)
            names.append(named[1])
    return names


def typed() -> list[tuple[str, str]]:
    """Each command, and what it is shown to print, if that is shown."""
    found: list[tuple[str, str]] = []
    for language, block in BLOCKS:
        for line in block.splitlines() if language == "console" else ():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), ""))
            else:
                found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def follow(folder: Path, home: Path, **variables: str) -> None:
    """Do all that it says in `folder`, which has a .venv, as a user whose home is new."""
    saved(folder)
    commands = [command for command, _ in typed()]
    printed = enter(commands, folder, home, AIOS_HOME=str(home / "aios"), **variables)
    for text, (command, shown) in zip(printed, typed(), strict=True):
        assert shown in text, (command, text)


def enter(commands: list[str], folder: Path, home: Path, **variables: str) -> list[str]:
    """Type them in one shell of a user with this home, each of which must end well; what each
    printed."""
    lines = [
        line
        for command in commands
        for line in (command, f'code=$?; echo; echo "{MARK} $code"; [ $code = 0 ] || exit 1')
    ]
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR")
    env = {name: value for name, value in os.environ.items() if name in kept}
    done = subprocess.run(
        ["bash"], input="\n".join(lines), cwd=folder, text=True, capture_output=True, check=False,
        env=env | {"HOME": str(home)} | variables, timeout=900,
    )  # fmt: skip
    *printed, rest = re.split(rf"\n{MARK} (?=\d)", done.stdout)
    assert done.returncode == 0, (commands[len(printed) - 1], done.stdout[-2000:], done.stderr)
    assert rest.strip() == "0"
    return [each.partition("\n")[2] if at else each for at, each in enumerate(printed)]
