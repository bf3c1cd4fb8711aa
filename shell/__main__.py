"""The program `aios`, also as `python -m aios.shell`."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until `main` looks, a Ctrl-C ends the program as it does any other, with no traceback of
    # whichever import it came in: they take half a second, and there is nothing to clean up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from .cli import main

if __name__ == "__main__":
    main()
