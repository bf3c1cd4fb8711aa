"""The steps that CONTRIBUTING.md shows are carried out, in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from places import PROJECT

PARTS = ("syscalls", "kernel", "agents", "shell", "bench", "examples")
BLOCK = re.compile(r"^ *(`{3,4})(\w+)\n(.*?)^ *\1$", re.MULTILINE | re.DOTALL)
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build")


class Tree:
    """A copy of the project, in which Python finds its own packages."""

    def __init__(self, folder: Path) -> None:
        self.root, packages = folder / "tree", folder / "packages" / "aios"
        shutil.copytree(PROJECT, self.root, ignore=NOT_COPIED)
        packages.mkdir(parents=True)
        for part in PARTS:
            (packages / part).symlink_to(self.root / part)
        self.env = os.environ | {"PYTHONPATH": str(packages.parent)}

    def follow(self, section: str) -> set[str]:
        """Do what a section shows, in its order; the files that it has edited."""
        page = (PROJECT / "CONTRIBUTING.md").read_text()
        text = page.partition(f"## {section}\n")[2].partition("\n## ")[0]
        edited = set()
        for _, language, block in BLOCK.findall(text):
            if language == "diff":
                edited.add(self.edit(textwrap.dedent(block)))
            elif language == "console":
                for command in re.findall(r"^ *\$ (.*)$", block, re.MULTILINE):
                    self.run("bash", "-c", f'python() {{ {sys.executable} "$@"; }}; {command}')
            else:
                test = textwrap.dedent(block)
                (self.root / test.split()[1]).write_text(test)
        return edited

    def edit(self, diff: str) -> str:
        """Change a file as a block says: each of its hunks stands in one place there, and is found
        by the lines that stay."""
        head, _, hunks = diff.partition("\n")
        name = head.removeprefix("+++ ")
        file = self.root / name
        text = file.read_text() if file.exists() else ""
        for hunk in hunks.split("@@\n"):
            lines = [line or " " for line in hunk.splitlines()]
            assert {line[0] for line in lines} <= set("+- "), hunk
            before = "".join(f"{line[1:]}\n" for line in lines if line[0] != "+")
            after = "".join(f"{line[1:]}\n" for line in lines if line[0] != "-")
            assert text.count(before) == 1 or not text, f"not once in {name}:\n{before}"
            text = text.replace(before, after) if text else after
        file.write_text(text)
        return name

    def changed(self) -> set[str]:
        """The files that are others than in the project, but for compiled ones."""
        files = (file for file in self.root.rglob("*") if file.is_file() and file.suffix != ".pyc")
        names = (file.relative_to(self.root).as_posix() for file in files)
        return {name for name in names if not same(self.root / name, PROJECT / name)}

    def run(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    def test(self, *names: str) -> None:
        self.run(sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names)


def same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_system_call_takes_four_files(tree: Tree) -> None:
    edited = tree.follow("A system call")
    assert len(edited) == 4, edited
    assert tree.changed() - edited == {"docs/abi.md", "tests/system/processes/test_msg_count.py"}
    tree.test(
        "tests/system/processes/test_msg_count.py", "tests/unit/syscalls/test_table.py",
        "tests/unit/kernel/test_turns.py::test_the_worst_of_a_call_takes_a_bounded_number_of_steps[msg.count]",
    )  # fmt: skip


def test_a_scheduling_policy_takes_one_file(tree: Tree) -> None:
    edited = tree.follow("A scheduling policy")
    assert len(edited) == 1, edited
    made = {"kernel/llm/scheduler/strict.py", "tests/unit/llm/test_strict.py"}
    assert tree.changed() - edited == made
    names = ("test_strict", "test_scheduler", "test_scheduler_machine")
    tree.test(*(f"tests/unit/llm/{name}.py" for name in names))


def test_a_tool_takes_four_files_with_its_test(tree: Tree) -> None:
    edited = tree.follow("A tool")
    assert tree.changed() == edited
    assert len(edited) == 4, edited
    tree.test("tests/system/tools/test_shipped_tools.py", "-k", "manual or description or worker")
