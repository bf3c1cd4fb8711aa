"""Use stderr as a log that never fails.

On a full disk messages are lost: a process must not end because it has no room to log.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys


class LogStream(io.TextIOBase):
    """A text stream to descriptor 2 that drops what cannot be written."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        return len(text)


def become_log() -> None:
    """Use a LogStream as stderr; `sys.__stderr__` stays as it was."""
    sys.stderr = LogStream()
