"""Defects of the kernel: told in its log in full, and to the caller as an error."""

from __future__ import annotations

import sys
import traceback

from aios.syscalls.errors import Internal


def report() -> Internal:
    """Print the exception that is being handled; return the error for the call that it ends."""
    traceback.print_exc(file=sys.stderr)
    return Internal("the kernel failed to serve this call")
