"""The project's source files, and what each imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from places import PROJECT


def sources(package: str) -> list[Path]:
    return sorted((PROJECT / package).rglob("*.py"))


@cache
def imports(path: Path) -> list[str]:
    """Return the absolute names of the modules that a file imports when it runs, also inside
    functions."""
    package = ["aios", *path.relative_to(PROJECT).parent.parts]
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not _is_for_types(node)]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return names


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
