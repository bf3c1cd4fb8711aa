"""Where a system lives, and so where its kernel listens."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from .errors import BadInput

INIT = "aios.kernel.init"  # the module that a system is started as
LONGEST = 100  # bytes of a Unix socket's path, with some to spare
CERTIFICATES = (  # files and folders of whom programs trust
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
)  # fmt: skip


def default_home() -> Path:
    """AIOS_HOME, or this user's XDG state directory."""
    given = os.environ.get("AIOS_HOME")
    return Path(given).absolute() if given else Path(platformdirs.user_state_dir("aios"))


def init_runs(home: Path) -> bool:
    """Whether an init holds this home: then a kernel that died is followed by another."""
    try:
        os_pid = int((home / "init.lock").read_text())
        words = Path(f"/proc/{os_pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return INIT.encode() in words  # not the pid of one that ended, which another has now


def endpoint(home: Path) -> str:
    """The ZeroMQ address of the kernel of `home`.

    Raises:
        BadInput: the path is too long for a Unix socket.
    """
    path = str(home / "run" / "kernel.sock")
    if len(path.encode()) > LONGEST:
        raise BadInput(f"{path} is too long for a socket", "set AIOS_HOME to a shorter path")
    return "ipc://" + path
