"""Standard error as a log. Where its disk is full what is said is lost, and nothing else: a part of
the system must not end because it has no room to say something."""

from __future__ import annotations

import contextlib
import io
import os
import sys


class Log(io.TextIOBase):
    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        return len(text)


def become_log() -> None:
    """For the rest of this process; `sys.__stderr__` stays what it was."""
    sys.stderr = Log()
