"""Parts that the benches share: the text they run on, and a system of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.resources import files
from pathlib import Path
from typing import Any

from aios.kernel.config import embedded_model
from aios.shell.launch import System

Progress = Callable[[str], None]
MODEL: ContextVar[Path | None] = ContextVar("model", default=None)  # None: the embedded one


def model() -> Path:
    """The file that both sides of a bench load."""
    return MODEL.get() or embedded_model()


def text() -> str:
    """The first chapter of Alice's Adventures in Wonderland, about 2,900 tokens."""
    return files("aios.examples").joinpath("alice.txt").read_text()


def threads() -> int:
    """Return the threads that both sides of a bench compute with: one a processor, as `aios start`
    takes."""
    return os.cpu_count() or 1


@contextmanager
def system(progress: Progress, **settings: Any) -> Iterator[Path]:
    """The home of a system that runs as long as the block does."""
    with tempfile.TemporaryDirectory(prefix="aios-") as home:
        running = System(Path(home), {"model": str(model()), **settings}, detach=False)
        try:
            running.ready(progress)
            yield running.home
        finally:
            running.end()
