"""The name that an agent's file declares, read without running it."""

from __future__ import annotations

import ast
from pathlib import Path

MAX_FILE_BYTES = 1 << 20


def declared_name(program: str) -> str | None:
    """Return the `name` of the one agent in a .py file, or None if it has none, or the file cannot
    be read here: its spawner will find out."""
    path = Path(program)
    try:
        if path.suffix != ".py" or not path.is_absolute() or path.stat().st_size > MAX_FILE_BYTES:
            return None
        body = ast.parse(path.read_bytes()).body
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    classes = [node for node in body if isinstance(node, ast.ClassDef) and node.bases]
    classes = list(filter(_is_agent, classes)) or classes  # or its base is another file's
    names = [name for each in classes if (name := _name_of(each))]
    return names[0] if len(names) == 1 else None


def _is_agent(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).rpartition(".")[2] == "Agent" for base in node.bases)


def _name_of(node: ast.ClassDef) -> str | None:
    for line in node.body:
        match line:
            case (
                ast.Assign(targets=[ast.Name(id="name")], value=ast.Constant(value=str() as name))
                | ast.AnnAssign(target=ast.Name(id="name"), value=ast.Constant(value=str() as name))
            ):
                return name
    return None
