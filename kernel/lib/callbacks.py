"""Callbacks for where nobody listens."""

from __future__ import annotations


def ignore(*_args: object) -> None:
    """Do nothing."""
