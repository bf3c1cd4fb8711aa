"""A home that an earlier AIOS wrote: all of it is there for this one.

homes/8c86181.tar.xz was written by that commit, on the tiny model: an agent "keeper" kept its
memory, stored two versions of a file, and said a color in a context with a name; then a person
stored a file, and stopped the system.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from conftest import run_system
from places import SUPPORT

from aios.agents import Aios, connect

WRITTEN = SUPPORT / "homes" / "8c86181.tar.xz"
SAID = [619, 1040, 1953, 342, 658, 1054, 1144, 361, 312, 1520, 563, 2]
AGAIN = """
from aios.agents import Agent


class Keeper(Agent):
    def run(self, task):
        old = self.aios.open(name="talk")
        new = self.aios.open("You are terse.")
        options = {"max_tokens": 12, "digest": True, "ignore_eos": True}
        said = new.generate("Name a color.", **options).result()
        went_on = [context.generate("Another.", **options).result() for context in (old, new)]
        return {
            "said": said.tokens,
            "went on": [[each.tokens, each.digest] for each in went_on],
            "memory": self.aios.mem_get(["port", "depth"], space="harbour"),
        }
"""


@pytest.fixture
def home(homes: Path) -> Path:
    home = Path(tempfile.mkdtemp(dir=homes))
    with tarfile.open(WRITTEN) as written:
        written.extractall(home, filter="data")
    return home


@pytest.fixture
def aios(home: Path) -> Iterator[Aios]:
    for system in run_system(home, {"slots": 2, "ctx": 512}):
        with connect(system.home) as aios:
            yield aios


def test_memory_and_files_are_there(aios: Aios) -> None:
    assert aios.mem_get(["port", "depth"], space="harbour", principal="/keeper") == {
        "port": "Amsterdam",
        "depth": 11,
    }
    path, owner = "notes/today.txt", "/keeper"
    assert aios.sto_get(path, owner=owner) == b"The harbour is open."
    assert aios.sto_get(path, 1, owner=owner) == b"The harbour is closed."
    assert aios.sto_get("people/list.txt") == b"Ada\nGrace\n"
    assert aios.check() == []


def test_an_agent_of_the_same_name_goes_on_in_its_context(aios: Aios, tmp_path: Path) -> None:
    program = tmp_path / "keeper.py"
    program.write_text(AGAIN)
    result = aios.wait(aios.spawn(str(program), name="keeper")).result
    assert result["said"] == SAID
    old, new = result["went on"]
    assert old == new
    assert result["memory"] == {"port": "Amsterdam", "depth": 11}


def test_the_audit_log_is_as_it_was_written(home: Path) -> None:
    """That home has no newest checkpoint beside its key: there is one once the system has run."""
    for _ in run_system(home, {"slots": 2, "ctx": 512}):
        found = commands.run(home, "audit", "search", "--json").stdout
        names = [json.loads(line)["call"] for line in found.splitlines()]
    assert "mem.keep" in names
    assert "as it was written" in commands.run(home, "audit", "verify").stdout
