"""All that the documents show is true: commands run, snippets work, named places exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commands import AIOS
from conftest import left_of
from models import tiny_model
from places import PROJECT
from readme import blocks, enter, follow, typed

from aios.kernel.config import Config
from aios.shell.commands.bench import NAMES


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, **options)


def test_the_readme_runs_from_top_to_bottom(homes: Path, tmp_path: Path) -> None:
    """On a machine that has been set up; `make faults` sets one up for it."""
    home = homes / "reader"
    home.mkdir()
    (tmp_path / ".venv").symlink_to(PROJECT / ".venv")
    follow(tmp_path, home)
    assert left_of(home) == []


def test_the_commands_of_the_guide_to_security_run_in_their_order(
    homes: Path, tmp_path: Path
) -> None:
    """By a user whose home is new, once for callers elsewhere and once for encryption."""
    aios, model = shlex.join(AIOS), tiny_model(tmp_path / "tiny.gguf")
    program = tmp_path / "bin" / "aios"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ $1 = start ] && set "$@" --model {model}\nexec {aios} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "aios.key").write_bytes(b"another key of 32 bytes or more, as it should be")
    text = (PROJECT / "docs" / "security.md").read_text()
    for shown, real in {
        "tcp://192.0.2.7:7777": "tcp://127.0.0.1:*", "/media/stick": str(tmp_path),
        "'PUBLIC KEY'": '"$(aios key new again --file again.key | head -n 1)"',
    }.items():  # fmt: skip
        text = text.replace(shown, real)
    listening, *encrypted = blocks(text, "console")
    for name, lines in (("listening", listening), ("encrypted", "".join(encrypted))):
        home = homes / name
        home.mkdir()
        commands = re.findall(r"^\$ (.*)$", lines, re.MULTILINE)
        path = f"{program.parent}:{os.environ['PATH']}"
        enter([*commands, "aios stop"], tmp_path, home, PATH=path)
        assert left_of(home) == []


def test_the_readme_s_commands_are_all_of_its_commands() -> None:
    names = [line.split()[0] for line, _ in typed()]
    assert names.count("aios") > 15
    assert set(names) == {".", "aios", "echo", "python"}


@pytest.mark.parametrize("target", ["install", "run", "test", "lint", "bench", "faults"])
def test_the_makefile_has_what_the_readme_promises(target: str) -> None:
    done = run(["make", "-n", target], cwd=PROJECT)
    assert done.returncode == 0, done.stderr


def pages() -> list[Path]:
    return [page for folder in (".", "docs/**", "bench") for page in PROJECT.glob(f"{folder}/*.md")]


def test_links_lead_somewhere() -> None:
    for page in pages():
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page, link)


def test_each_page_can_be_reached_from_the_readme() -> None:
    reached, new = set[Path](), {PROJECT / "README.md"}
    while new:
        reached |= new
        links = {
            (page.parent / link).resolve()
            for page in new
            for link in re.findall(r"\]\(([^)#:]+\.md)[^)]*\)", page.read_text())
        }
        new = links - reached
    assert set(pages()) - reached == {PROJECT / "CHANGELOG.md"}


def test_the_files_that_pages_name_are_there() -> None:
    for page in pages():
        for name in re.findall(
            r"`((?:agents|bench|examples|kernel|shell|syscalls|tests)/[\w/]+\.py)", page.read_text()
        ):
            assert (PROJECT / name).exists(), (page, name)


def cases_of(file: str) -> set[str]:
    return {
        node.name
        for path in (PROJECT / "tests").rglob(file)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_each_row_of_the_threat_model_names_a_test_that_there_is() -> None:
    text = (PROJECT / "docs" / "security.md").read_text()
    text = text.partition("## Threat model\n")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| test |" not in line]
    assert len(rows) > 40
    for line in rows:
        named = re.fullmatch(r"\|.*\|.*\| `(test_\w+\.py)::(test_\w+)` \|", line)
        assert named, line
        assert named[2] in cases_of(named[1]), line
    assert text.count("\nNot stopped: ") == text.count("\n### ")


def test_the_settings_shown_are_the_defaults() -> None:
    shown = tomllib.loads(blocks((PROJECT / "docs" / "settings.md").read_text(), "toml")[0])
    default = msgspec.to_builtins(Config(home="/home"))
    assert shown.pop("model") != default.pop("model")
    limits = {name: value for name, value in default.pop("limits").items() if value is not None}
    assert shown.pop("limits") == limits
    assert shown == {name: value for name, value in default.items() if name != "home"}


def defined(part: str) -> Iterator[str]:
    """Yield the members of the classes of a part, as `Class.name`."""
    for file in (PROJECT / part).rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                yield from (f"{node.name}.{name}" for name in members(node))


def members(node: ast.ClassDef) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            yield each.name
        elif isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self":
            yield each.attr
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            yield each.target.id


def test_the_methods_that_pages_name_are_there() -> None:
    known = {name for part in ("agents", "kernel", "syscalls") for name in defined(part)}
    for page in [PROJECT / "ARCHITECTURE.md", *(PROJECT / "docs" / "internals").glob("*.md")]:
        named = set(re.findall(r"`([A-Z]\w+\.\w+)`", page.read_text()))
        assert named <= known, (page, named - known)


def test_the_classes_that_pages_name_are_there() -> None:
    known = {
        node.name
        for part in ("agents", "kernel", "syscalls")
        for file in (PROJECT / part).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    inside = (PROJECT / "docs" / "internals").glob("*.md")
    for page in [PROJECT / "ARCHITECTURE.md", PROJECT / "CONTRIBUTING.md", *inside]:
        named = set(re.findall(r"`([A-Z]\w*[a-z]\w*)`", page.read_text()))
        assert named <= known, (page, named - known)


def test_the_files_that_docstrings_name_are_beside_them() -> None:
    for part in ("agents", "kernel", "shell", "syscalls"):
        files = list((PROJECT / part).rglob("*.py"))
        names = {file.name for file in files} | {page.name for page in pages()}
        for file in files:
            said = ast.get_docstring(ast.parse(file.read_text())) or ""
            found = re.findall(r"\b(\w+\.(?:py|md))\b", said)
            assert set(found) <= names, (file, set(found) - names)


def test_each_figure_has_its_day_and_a_command_that_there_is() -> None:
    text = (PROJECT / "bench" / "RESULTS.md").read_text()
    assert set(re.findall(r"`aios bench (\w+)", text)) <= set(NAMES)
    for table in text.split("| what | figure | day |\n|---|---|---|\n")[1:]:
        for row in table.partition("\n\n")[0].splitlines():
            assert re.fullmatch(r"\| .+ \| .+ \| 20\d\d-\d\d-\d\d \|", row), row
