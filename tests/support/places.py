"""Folders that tests read from."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).parent
PROJECT = SUPPORT.parent.parent
DOCS = PROJECT / "docs"
