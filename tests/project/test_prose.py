"""How the code reads: docstrings and comments, the length of functions and files, class names."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import PROJECT
from source_files import imports, sources

PARTS = ("kernel", "agents", "shell", "syscalls", "bench", "examples", "tests")
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "STYLE.md", "bench/RESULTS.md")
RIDDLE = re.compile(r"(?:^|[.!?]\s+)(?:What|Whether|Of|Those|Likewise)\b")
MAX_FUNCTION_LINES, MAX_FILE_LINES = 50, 400
PROCESSES = (
    "kernel.__main__", "kernel.audit.__main__", "kernel.core.__main__", "kernel.core.fit",
    "kernel.core.renderer", "kernel.core.grammar_probe", "kernel.gateway.__main__",
    "kernel.index.__main__", "kernel.init.__main__", "kernel.init.keyring",
)  # fmt: skip

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def texts(path: Path) -> Iterator[str]:
    """The docstrings and comments of a file."""
    for node in nodes(path):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield text
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.removeprefix("#").strip()


@pytest.mark.parametrize("part", PARTS)
def test_no_sentence_is_a_riddle(part: str) -> None:
    assert [
        (name_of(path), text)
        for path in sources(part)
        for text in texts(path)
        if RIDDLE.search(text)
    ] == []


@pytest.mark.parametrize("page", [*PAGES, "docs"])
def test_no_page_is_a_riddle(page: str) -> None:
    for path in (PROJECT / page).rglob("*.md") if (PROJECT / page).is_dir() else [PROJECT / page]:
        text = re.sub(r"```.*?```|^#.*$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        parts = re.split(r"\n\s*\n|\n(?=\s*[-*|] |\d+\. )", text)
        plain = [re.sub(r"^[\s|*-]+|\*", "", part) for part in parts]
        assert [part for part in plain if RIDDLE.search(part)] == [], path


def test_a_riddle_is_found_wherever_it_is() -> None:
    for text in ("What it is.", "It is. Whether it was, is gone.", "Keep it.\nOf all, the last."):
        assert RIDDLE.search(text)
    for text in ("Tell whether it is.", "Officers come first.", "It is what it is."):
        assert not RIDDLE.search(text)


def test_functions_fit_a_screen() -> None:
    long = {
        f"{name_of(path)} {node.name}"
        for part in PARTS
        for path in sources(part)
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    }
    assert long == set(), "shorten these"


def test_files_are_short() -> None:
    long = {
        name_of(path)
        for part in PARTS
        for path in sources(part)
        if len(path.read_text().splitlines()) > MAX_FILE_LINES
    }
    assert long == set(), "split these"


def modules() -> dict[str, Path]:
    """The kernel's modules by their names without `aios.`."""
    found = {}
    for path in sources("kernel"):
        parts = path.relative_to(PROJECT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str) -> set[str]:
    """The kernel's modules that the process of one imports, itself and later imports included."""
    known, found, todo = modules(), set[str](), [module]
    while todo:
        name = todo.pop()
        if name in known and name not in found:
            found.add(name)
            todo += [each.removeprefix("aios.") for each in imports(known[name])]
    return found


def test_a_class_name_has_one_meaning_in_a_process() -> None:
    known, same = modules(), set()
    for process in PROCESSES:
        places: dict[str, set[str]] = defaultdict(set)
        for module in imported(process):
            for node in ast.parse(known[module].read_text()).body:
                if isinstance(node, ast.ClassDef):
                    places[node.name].add(module)
        same |= {name for name, found in places.items() if len(found) > 1}
    assert same == set(), "rename one of each"


def test_the_modules_of_a_process_are_found() -> None:
    """The test above rests on this."""
    assert imported("kernel.gateway.__main__") >= {
        "kernel.gateway.protocol",
        "kernel.lib.log_stream",
    }
    assert "kernel.processes.lifecycle" in imported("kernel.__main__")
    assert "kernel.boot" not in imported("kernel.init.__main__")
