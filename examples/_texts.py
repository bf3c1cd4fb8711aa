"""The texts that tasks of agents name: `aios run summarize notes.txt`."""

from __future__ import annotations

import sys
from pathlib import Path

ALICE = Path(__file__).with_name("alice.txt")


def read_text(path: str | Path) -> str:
    """Return the text in the file `path`.

    Raises:
        SystemExit: it cannot be read, or holds nothing; why, in one line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        sys.exit(f"cannot read {path}: {error.strerror}")
    except ValueError:
        sys.exit(f"cannot read {path}: it is no text in UTF-8")
    if not text.strip():
        sys.exit(f"{path} is empty")
    return text
